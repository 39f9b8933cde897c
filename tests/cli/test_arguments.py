"""Arguments become dataclasses, or one line that says what was found and what was expected."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from sft_jax.cli.arguments import config_with_options, parse
from sft_jax.cli.fields import Positional
from sft_jax.config import Data, Mesh, RunConfig, to_json
from sft_jax.errors import BadInput


@dataclass(frozen=True)
class Command:
    """Do something."""

    model: Annotated[str, Positional("MODEL")]
    """What to do it to."""
    out: str = ""
    """Where to."""
    n: int = 1
    """How often."""
    kind: Literal["fast", "slow"] = "fast"
    """How."""
    words: tuple[str, ...] = ()
    """With what."""
    checks: tuple[str, ...] = ("auto",)
    """Which checks."""
    shares: tuple[float, ...] = ()
    """How much of each."""
    rank: int | None = None
    """If any."""
    json: bool = False
    """Print JSON."""
    mesh: Mesh = field(default_factory=Mesh)


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (("m",), {}),
        (("m", "--out", "x", "--n", "3"), {"out": "x", "n": 3}),
        (("m", "--n=3", "--kind=slow"), {"n": 3, "kind": "slow"}),
        (("--json", "m"), {"json": True}),
        (("m", "--json", "False"), {"json": False}),
        (("m", "--json", "true", "--words", "a", "b"), {"json": True, "words": ("a", "b")}),
        (("m", "--words"), {"words": ()}),
        (("m", "--words", "none"), {"words": ("none",)}),
        (("m", "--words=-x"), {"words": ("-x",)}),
        (("m", "--checks", "none"), {"checks": ("none",)}),
        (("m", "--shares", "0.5", "2", "1e-3"), {"shares": (0.5, 2.0, 1e-3)}),
        (("m", "--rank", "8"), {"rank": 8}),
        (("m", "--rank", "none"), {"rank": None}),
        (("m", "--mesh.fsdp", "-1", "--mesh.data", "2"), {"mesh": Mesh(data=2, fsdp=-1)}),
    ],
)
def test_options_become_values_of_their_types(arguments, changed):
    assert parse(Command, arguments, "do") == Command("m", **changed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "do: MODEL is missing. See do --help"),
        (("m", "--n", "x"), "do: --n: found 'x', expected a whole number"),
        (("m", "--n", "1.5"), "do: --n: found '1.5', expected a whole number"),
        (("m", "--n", "1,5"), "do: --n: found '1,5', expected a whole number"),
        (("m", "--shares", "1", "x"), "do: --shares: found 'x', expected a number"),
        (("m", "--kind", "quick"), "do: --kind: found 'quick', expected one of fast, slow"),
        (("m", "--json=maybe"), "do: --json: found 'maybe', expected True or False"),
        (("m", "--out"), "do: --out: expected one argument"),
        (("m", "stray"), "do: did not expect 'stray'"),
        (("m", "--output", "x"), "do: unknown option --output. Here it is --out."),
        (("m", "--mesh.tp", "2"), "do: unknown option --mesh.tp. Here it is --mesh.tensor."),
        (("m", "--mesh.fsdb", "2"), "do: unknown option --mesh.fsdb. Did you mean '--mesh.fsdp'"),
        (("m", "--ou", "x"), "do: unknown option --ou. Did you mean '--out'"),
    ],
)
def test_a_wrong_argument_is_answered_in_one_line(arguments, message):
    with pytest.raises(BadInput) as refused:
        parse(Command, arguments, "do")
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_underscores_and_dashes_are_the_same():
    _, options = config_with_options(
        RunConfig, ("--model.path", "m", "--data.train", "d", "--data.sequence_length", "9"), "do"
    )
    assert options.data == Data(("d",), sequence_length=9)


def test_a_config_comes_first_and_options_change_it(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(to_json(RunConfig(data=Data(("a", "b"), eval=("c",)))))
    config, _ = config_with_options(RunConfig, (str(path), "--model.path", "m", "--data.eval", "none"), "do")
    assert config.data == Data(("a", "b")) and config.model.path == "m" and config.workdir == "runs/default"
    config, _ = config_with_options(RunConfig, (str(tmp_path), "--model.path", "m"), "do")
    assert config.workdir == str(tmp_path), "a workdir's config, where it is now"
    with pytest.raises(BadInput, match="CONFIG is missing: a Python file"):
        config_with_options(RunConfig, (), "do")
    with pytest.raises(BadInput, match=r"did not expect .*config.json'.*CONFIG comes first"):
        config_with_options(RunConfig, ("--model.path", "m", str(path)), "do")
