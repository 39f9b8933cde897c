"""`sft-jax` that writes down which rows of a batch this process read: $ROWS_READ{process}.json."""

import json
import os

import jax

from sft_jax.cli.main import main
from sft_jax.data.pack.batches import Batches

read = []
build = Batches.batch


def batch(self, step, row_slice=slice(None)):
    read.append([row_slice.start, row_slice.stop])
    with open(f"{os.environ['ROWS_READ']}{jax.process_index()}.json", "w", encoding="utf-8") as file:
        json.dump(read, file)
    return build(self, step, row_slice)


Batches.batch = batch  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
