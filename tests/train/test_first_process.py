"""What process 0 does for all: reads the files, says which day it is. Two real processes without a device program."""

import json
import subprocess
import sys

import pytest

MEMBER = """
import datetime, json, sys, time
from dataclasses import replace
from sft_jax.config import Data, Distributed, Model, RunConfig, Train
from sft_jax.data.pack import dataset
from sft_jax.distributed import agree
from sft_jax.distributed.start import start
from sft_jax.errors import BadInput
from sft_jax.storage.location import Location
from sft_jax.train import inputs

port, process, workdir, model, template, good, bad = sys.argv[1:]
met = Distributed(coordinator=f"127.0.0.1:{port}", processes=2, process_id=int(process), cpu_devices=1,
                  timeout_seconds=60)
start(met)
data = Data(train=(good,), sequence_length=128, chat_template=template, workers=1)
config = RunConfig(workdir, Model(model), data, train=Train(batch_size=2), distributed=replace(met, timeout_seconds=4))
agree.ASK_SECONDS = 0.5
make_part = dataset._make_part
dataset.PART_ROWS = 8


def read(config):
    try:
        found = inputs.read_inputs(config, Location(config.workdir))
    except BadInput as error:
        return {"refused": str(error)}
    return {"date": found.config.data.template_date, **found.record}


def slow(stem, rows):
    time.sleep(0.9)  # of six
    make_part(stem, rows)


def stuck(stem, rows):
    time.sleep(7 * (stem.name == "000000"))
    make_part(stem, rows)


class Date(datetime.date):
    @classmethod
    def today(cls):
        return cls(2031, 1, 1 + int(process))


inputs.datetime.date = Date
if process == "1":
    dataset.content_digest = None  # it reads no file
dataset._make_part = slow
print(json.dumps(read(config)), flush=True)
print(json.dumps(read(replace(config, data=replace(data, train=(bad,))))), flush=True)
dataset._make_part = stuck
print(json.dumps(read(replace(config, data=replace(data, train_on="all")))), flush=True)
"""


@pytest.mark.timeout(120)
def test_process_0_reads_the_files_and_the_clock_and_is_waited_for_as_long_as_it_gets_on(
    tmp_path, tiny_model, demonstrations, free_port
):
    template = tmp_path / "dated.jinja"
    template.write_text(
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "robot", "content": "x"}]}\n')
    paths = [tmp_path / "run", tiny_model, template, demonstrations, bad]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, str(free_port), str(process), *map(str, paths)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    said = [process.communicate(timeout=100) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    (slow, refused, first_stuck), (other_slow, other_refused, other_stuck) = (
        [json.loads(line) for line in out.splitlines()] for out, _ in said
    )
    assert slow["date"] == "2031-01-01" and slow == other_slow  # five seconds of parts, four of patience
    assert "robot" in refused["refused"] and refused == other_refused
    assert "refused" not in first_stuck
    assert "process 0 prepares the data and has made no progress for 4 s" in other_stuck["refused"]
