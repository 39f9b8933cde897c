"""sft-jax ceiling CONFIG: has imitation hit its ceiling?"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sft_jax.ceiling.options import Ceiling
from sft_jax.cli.arguments import check_writable, config_with_options
from sft_jax.errors import EXIT_DONE
from sft_jax.storage.location import require_local

PAGE = "ceiling.html"


USUAL = (
    "workdir", "model.path", "data.train", "data.eval", "data.sequence-length", "optimizer.learning-rate",
    "train.epochs", "train.batch-size",
)  # fmt: skip
"""What `--help` shows of the sections."""


def ceiling(arguments: Sequence[str]) -> int:
    """sft-jax ceiling CONFIG"""
    config, options = config_with_options(Ceiling, arguments, "sft-jax ceiling", USUAL)
    require_local(options.html, "--html")
    check_writable(options.html, option="--html")
    require_local(config.workdir, "workdir")  # many runs share it
    from sft_jax.ceiling.measure import measure_ceiling
    from sft_jax.cli.processes import leave
    from sft_jax.cli.train import train_on_terminal
    from sft_jax.distributed.agree import is_first_process

    result = measure_ceiling(config, options, train_on_terminal, leave)
    if is_first_process():
        from rich.console import Console

        from sft_jax.ceiling.page import ceiling_page, ceiling_tables
        from sft_jax.storage.atomic import write_atomic

        page = Path(options.html or Path(config.workdir) / PAGE)
        write_atomic(page, lambda file: file.write(ceiling_page(result).encode()))
        if options.json:
            print(json.dumps(result))
        else:
            Console(soft_wrap=True, highlight=False).print(ceiling_tables(result))
        print(page, file=sys.stderr)
    return EXIT_DONE
