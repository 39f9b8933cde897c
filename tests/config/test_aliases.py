"""A wrong name is answered by what it means before how it is spelled."""

import dataclasses

import pytest

from sft_jax.cli.evaluate import Evaluate
from sft_jax.cli.kl import Kl
from sft_jax.cli.plan import Plan
from sft_jax.cli.sample import Sample
from sft_jax.config import RunConfig, leaf_fields
from sft_jax.config.aliases import ALIASES, did_you_mean

FIELDS = [name for name, _, _ in leaf_fields(RunConfig())]
OPTIONS = {field.name for kind in (Evaluate, Kl, Plan, Sample) for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(("alias", "meaning"), ALIASES.items(), ids=list(ALIASES))
def test_every_alias_names_a_field_of_a_run_or_an_option_of_a_command(alias, meaning):
    known = FIELDS if meaning.field in FIELDS else sorted(OPTIONS)
    assert alias not in FIELDS and meaning.field in known
    expected = f"Here it is {meaning.field}{f' ({meaning.note})' if meaning.note else ''}."
    for spelled in (alias, f"--{alias}", f"--optimizer.{alias.replace('_', '-')}", alias.upper()):
        assert did_you_mean(spelled, known) == expected


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("--train.learning-rate", "Did you mean --optimizer.learning-rate?"),
        ("--batch-size", "Did you mean --train.batch-size?"),
        ("--train.stepz", "Did you mean '--train.steps'"),
        ("--optimizer.lr", "Here it is --optimizer.learning-rate."),
        ("--zzzzzz", ""),
    ],
)
def test_the_answer_is_spelled_as_options_are(name, answer):
    options = [f"--{field.replace('_', '-')}" for field in FIELDS]
    found = did_you_mean(name, options)
    assert found.startswith(answer) if answer else found == ""


def test_a_short_list_of_names_is_shown_whole():
    assert did_you_mean("zzz", ["--one", "--two"]) == "Known: --one, --two."


def test_an_alias_of_something_that_the_command_lacks_is_answered_by_spelling():
    assert did_you_mean("--output_dir", ["--out", "--seed"]) == "Did you mean '--out'?"
