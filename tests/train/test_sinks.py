import json
from dataclasses import dataclass

import pytest

from sft_jax.config import SINKS
from sft_jax.errors import BadInput
from sft_jax.train.sinks import open_sinks


def test_metrics_jsonl_goes_on_and_events_are_written(tmp_path):
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        sinks = open_sinks(tmp_path, start, tensorboard=True, names=())
        for step in steps:
            for sink in sinks:
                sink.write({"step": step, "loss": 1.0, "mfu": None})
        for sink in sinks:
            sink.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_sink_is_a_dataclass_and_a_function(tmp_path):
    rows = []

    class Kept:
        def write(self, row):
            rows.append(row)

        def close(self):
            rows.append("closed")

    @SINKS.kind("kept")
    @dataclass(frozen=True)
    class Settings:
        """None."""

    @SINKS.maker("kept")
    def make(own, workdir, start_step):
        return Kept()

    jsonl, sink = open_sinks(tmp_path, 0, tensorboard=False, names=("kept",))
    sink.write({"step": 1})
    jsonl.close()
    sink.close()
    assert rows == [{"step": 1}, "closed"]
    with pytest.raises(BadInput, match=r"train.sinks is 'kep'. Did you mean 'kept'"):
        open_sinks(tmp_path, 0, tensorboard=False, names=("kep",))
