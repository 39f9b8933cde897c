"""`sft-jax` on a host with files of its own: `local/` is `a/` on process 0 and `b/` on process 1."""

import sys

from sft_jax.cli.main import main
from sft_jax.train import inputs

opened = inputs.open_entry


def open_entry(data, tokenizer, entry, *rest):
    mine = "ab"[int(sys.argv[sys.argv.index("--distributed.process-id") + 1])]
    return opened(data, tokenizer, entry.replace("/local/", f"/{mine}/"), *rest)


inputs.open_entry = open_entry  # type: ignore[assignment]

if __name__ == "__main__":
    main()
