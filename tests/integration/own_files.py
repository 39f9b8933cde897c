"""`sft-jax` on a host with files of its own: `local/` is `a/` on process 0 and `b/` on process 1."""

import sys

from sft_jax.cli.main import main
from sft_jax.train import inputs

MINE = "ab"[int(sys.argv[sys.argv.index("--distributed.process-id") + 1])]


def of_this_host(work):
    return lambda data, tokenizer, entry, *rest: work(data, tokenizer, entry.replace("/local/", f"/{MINE}/"), *rest)


inputs.open_entry, inputs.prepare_entry = map(of_this_host, (inputs.open_entry, inputs.prepare_entry))

if __name__ == "__main__":
    main()
