"""Files as people have them load with the counts known of them. Other people's, so they are not in the repository:

SFT_JAX_FORMATS=folder .venv/bin/python -m pytest tests/data/forms/found_files.py
"""

import os
from pathlib import Path

import pytest

from sft_jax.config import Data
from sft_jax.data.forms.formats import demonstrations
from sft_jax.data.read.readers import read_records
from tests.data.forms.test_formats import trained_turns

FOLDER = Path(os.environ["SFT_JAX_FORMATS"])
COUNTS = {  # rows, rows with a trained turn, trained turns: as the README of the files says
    "alpaca.json": (151, 151, 151),
    "alpaca.jsonl.gz": (151, 151, 151),
    "alpaca_identity.json": (91, 91, 91),
    "gsm8k.jsonl": (267, 267, 267),
    "gsm8k.parquet": (267, 267, 267),
    "messages.parquet": (180, 180, 180),
    "messages_loss_weight.jsonl": (180, 180, 180),
    "messages_parts_reasoning_tools.jsonl": (29, 29, 68),
    "messages_weight_openai.jsonl": (60, 50, 60),
    "openai_messages.jsonl": (5, 5, 8),
    "openai_messages_tools.jsonl": (52, 52, 175),
    "prompt_completion.jsonl": (144, 144, 144),
    "prompt_completion_legacy.jsonl": (178, 178, 178),
    "self_instruct_seed_tasks.jsonl": (175, 175, 175),
    "sharegpt.json": (331, 331, 663),
    "sharegpt_tools.json": (52, 52, 175),
    "text_only.jsonl": (100, 100, 100),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_file_loads_with_the_counts_known(make_tokenizer, templates, name: str):
    tokenizer = make_tokenizer(templates.CHATML_THINKS)
    turns = []
    for record in read_records((str(FOLDER / name),)):
        [one] = demonstrations(record, Data())
        turns.append(trained_turns(tokenizer, one))
    assert (len(turns), sum(map(bool, turns)), sum(turns)) == COUNTS[name]
