"""sft-jax ceiling CONFIG: has imitation hit its ceiling?"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sft_jax.ceiling.measure import Ceiling, measure_ceiling
from sft_jax.cli.arguments import check_writable, config_with_options
from sft_jax.errors import EXIT_DONE
from sft_jax.storage.bucket import require_local
from sft_jax.using import is_first_process

PAGE = "ceiling.html"


def ceiling(arguments: Sequence[str]) -> int:
    """sft-jax ceiling CONFIG"""
    config, options = config_with_options(Ceiling, arguments, "sft-jax ceiling")
    require_local(options.html, "--html")
    check_writable(options.html, option="--html")
    require_local(config.workdir, "workdir")  # many runs share it
    result = measure_ceiling(config, options)
    if is_first_process():
        from rich.console import Console

        from sft_jax.ceiling.page import print_ceiling, write_ceiling_page

        page = Path(options.html or Path(config.workdir) / PAGE)
        write_ceiling_page(result, page)
        if options.json:
            print(json.dumps(result))
        else:
            print_ceiling(result, Console(soft_wrap=True, highlight=False))
        print(page, file=sys.stderr)
    return EXIT_DONE
