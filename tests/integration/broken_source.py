"""`sft-jax` whose batches cannot be read from step 3 on. Run as `python -m tests.integration.broken_source ...`."""

from sft_jax.cli.main import main
from sft_jax.data.pack.batches import Batches

read = Batches.batch


def fail(self, step, *rest):
    if step == 2:
        raise OSError("disk gone")
    return read(self, step, *rest)


Batches.batch = fail  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
