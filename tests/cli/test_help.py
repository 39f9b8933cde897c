"""Help fits on a screen, and `--help-all` has everything."""

import pytest

from sft_jax.cli.data import Prepare
from sft_jax.cli.fields import field_docs, options_of
from sft_jax.cli.main import COMMANDS, USAGE, WELCOME, run_command
from sft_jax.config import RunConfig, leaf_fields

PAGES = [(), ("--help",), *((name, "--help") for name in COMMANDS)]
PAGES += [("data", name, "--help") for name in ("audit", "prepare", "dump")]


@pytest.fixture
def shown(capsys, monkeypatch):
    """(arguments) -> what a terminal of 80 columns shows, line by line."""
    monkeypatch.setenv("COLUMNS", "80")

    def lines(*arguments: str) -> list[str]:
        try:
            status = run_command(arguments)
        except SystemExit as end:
            status = end.code
        assert status == 0
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_help_of_every_command_fits_on_a_screen(shown, page):
    lines = shown(*page)
    assert 5 < len(lines) <= 60 and max(map(len, lines)) <= 80


def test_train_help_shows_what_one_usually_sets_and_help_all_the_rest(shown):
    usual, everything = ("\n".join(shown("train", page)) for page in ("--help", "--help-all"))
    names = [f"--{name.replace('_', '-')}" for name, _, _ in leaf_fields(RunConfig())]
    seen = [name for name in names if f"  {name} " in usual or f"  {name}\n" in usual]
    assert 20 <= len(seen) <= 30
    assert f"--help-all shows {len(names) - len(seen)} more" in usual
    assert all(f"  {name} " in everything or f"  {name}\n" in everything for name in names)
    assert usual.startswith("usage: sft-jax train [CONFIG]") and "configs/quickstart.py" in usual
    assert "[2e-05]" in usual and "--help-all shows" not in everything


def test_a_commands_own_options_come_before_those_it_shares(shown):
    lines = shown("sample", "--help")
    places = [
        next(i for i, line in enumerate(lines) if line.startswith(f"  {name} "))
        for name in ("MODEL", "--prompts", "--dtype")
    ]
    assert places == sorted(places)


def test_every_option_has_its_doc():
    for kind in (RunConfig, Prepare):
        assert [option.name for option in options_of(kind) if not option.doc] == []
    assert field_docs(Prepare)["workdir"] == field_docs(RunConfig)["workdir"], "inherited"


def test_the_first_screen_shows_what_people_do_and_the_next_one_every_command(shown):
    assert shown() == WELCOME.splitlines() and sum(line.startswith("  ") for line in shown()) == 5
    assert shown("--help") == USAGE.splitlines()
    assert all(f"\n  {name} " in USAGE for name in COMMANDS)


def test_the_version_names_the_libraries_that_matter(shown):
    import jax

    import sft_jax

    [line] = shown("--version")
    assert line.startswith(f"sft-jax {sft_jax.__version__} (jax {jax.__version__}, flax ")


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("finetune", "Here it is sft-jax train."),
        ("generate", "Here it is sft-jax sample."),
        ("trian", "Did you mean 'train'"),
    ],
)
def test_a_command_of_another_name_is_answered_by_what_it_means(capsys, command, meant):
    assert run_command((command,)) == 2
    assert f"unknown command {command!r}. {meant}" in capsys.readouterr().err
