import tomllib
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from sft_jax.report.render import render

ROOT = Path(__file__).parents[2]


def test_what_is_not_html_is_escaped_and_what_is_missing_is_no_empty_place():
    values = {"numbers": [("a", "<b>")], "thinned": 0, "curves": [], "config": "{}"}
    assert "<td>&lt;b&gt;</td>" in render("run.html.jinja", title="run", **values)
    with pytest.raises(UndefinedError, match="title"):
        render("run.html.jinja", **values)


def test_the_package_takes_every_template_along():
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for template in files("sft_jax.report").joinpath("templates").iterdir():
        assert any(fnmatch(f"templates/{template.name}", pattern) for pattern in package_data["sft_jax.report"])
