"""What a script does with the library, as one process or as one of two: train, look, go on; a JSON line of results.

python -m tests.integration.use_library CONFIG WORKDIR OUT PROCESSES PROCESS PORT
"""

import json
import sys
from typing import Any

from orbax.checkpoint import CheckpointManager

import sft_jax as sft


def use(config: str, workdir: str, out: str, **distributed: Any) -> dict[str, Any]:
    fields = {f"distributed.{name}": value for name, value in distributed.items()}
    fields |= {"workdir": workdir, "train.steps": 4, "train.eval_every": 0, "train.save_every": 2}
    with sft.Run(config, **fields) as run:
        rows = run.step(2)
        held_out = run.evaluate()
        rows += run.step(2)
        [[completion]] = run.model.generate("Say a.", max_new_tokens=4)
        run.model.export(out)
    behind = CheckpointManager.latest_step
    if distributed.get("process_id"):  # its listing of the checkpoints lags
        CheckpointManager.latest_step = lambda self: 2
    with sft.Run(config, **fields) as again:
        at = again.steps_done
    CheckpointManager.latest_step = behind
    loaded = sft.load(out)
    return {
        "losses": [row["loss"] for row in rows],
        "held_out": held_out["eval/loss"],
        "tokens": completion.tokens,
        "again_at": at,
        "loaded": [one.tokens for one in loaded.generate("Say a.", max_new_tokens=4)[0]],
    }


if __name__ == "__main__":
    config, workdir, out, processes, process, port = sys.argv[1:]
    result = use(
        config, workdir, out,
        processes=int(processes), process_id=int(process), coordinator=f"127.0.0.1:{port}", cpu_devices=4,
    )  # fmt: skip
    print(json.dumps(result))
