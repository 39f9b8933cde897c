"""`sft-jax` on a host with files of its own: `local/` is `a/` on process 0 and `b/` on process 1, tokenised apart."""

import sys

from sft_jax.cli.main import main
from sft_jax.train import inputs

opened = inputs.open_entry


def open_entry(data, tokenizer, entry, cache, is_first_process, *rest):
    mine = "ab"[int(sys.argv[sys.argv.index("--distributed.process-id") + 1])]
    del is_first_process
    return opened(data, tokenizer, entry.replace("/local/", f"/{mine}/"), f"{cache}/{mine}", True, *rest)


inputs.open_entry = open_entry  # type: ignore[assignment]

if __name__ == "__main__":
    main()
