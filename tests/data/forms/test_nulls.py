from pathlib import Path

import datasets

from sft_jax.config import Data
from sft_jax.data.forms.formats import demonstrations
from sft_jax.data.read.readers import read_records


def _talk(**arguments):
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}


def test_nulls_that_to_json_writes_are_seen_and_the_function_takes_them_out(tmp_path: Path):
    file = str(tmp_path / "rows.jsonl")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([_talk(x=1), _talk(y=2)]).to_json(file)
    for settings, expected in (
        (Data(), [{"x": 1, "y": None}, {"x": None, "y": 2}]),
        (Data(function="sft_jax.data.forms.nulls:without_nulls"), [{"x": 1}, {"y": 2}]),
    ):
        made = [demonstrations(record, settings)[0] for record in read_records((file,))]
        assert [one.messages[1]["tool_calls"][0]["function"]["arguments"] for one in made] == expected
        assert all(one.nulls == (not settings.function) for one in made)
