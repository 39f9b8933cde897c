"""What docs/examples shows works: the script read from top to bottom, and the notebook cell by cell."""

import ast
import json
import runpy
from pathlib import Path

import numpy as np

import sft_jax as sft

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_the_minimal_training_script_learns_and_exports(tiny_model, demonstrations, tmp_path, capsys):
    path = EXAMPLES / "minimal_train.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120
    losses = runpy.run_path(str(path))["main"](str(tiny_model), str(demonstrations), str(tmp_path / "out"), 8)
    assert losses[-1] < losses[0] - 0.01 and "step 8: loss" in capsys.readouterr().out
    before, after = (sft.load(each).parameters["embedding"] for each in (tiny_model, tmp_path / "out"))
    assert np.abs(np.asarray(before) - np.asarray(after)).max() > 1e-4


def test_the_notebook_runs_from_its_first_cell_to_its_last(tiny_model, demonstrations, tmp_path):
    cells = json.loads((EXAMPLES / "first_run.ipynb").read_text(encoding="utf-8"))["cells"]
    (tmp_path / "train.jsonl").write_bytes(demonstrations.read_bytes() * 2)
    names = {"MODEL": tiny_model, "DEMONSTRATIONS": tmp_path / "train.jsonl", "WORKDIR": tmp_path / "run"}
    scope: dict = {}
    shown = []
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        if "parameters" in cell["metadata"].get("tags", ()):
            exec("".join(cell["source"]), scope)
            assert scope.keys() >= names.keys()
            scope.update((name, str(path)) for name, path in names.items())
            continue
        *statements, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(statements, []), "first_run.ipynb", "exec"), scope)
        if isinstance(last, ast.Expr):  # what a notebook shows
            shown.append(eval(compile(ast.Expression(last.value), "first_run.ipynb", "eval"), scope))
        else:
            exec(compile(ast.Module([last], []), "first_run.ipynb", "exec"), scope)
    model, row, _, losses, *_ = shown
    assert "parameters" in repr(model) and "<b title=" in row._repr_html_()
    assert len(losses) == 20 and losses[-1] < losses[0]
    assert (tmp_path / "run" / "report.html").is_file() and (tmp_path / "run" / "export" / "config.json").is_file()
