"""README, CONTRIBUTING and docs/: the links, paths and options in them exist."""

import re
from pathlib import Path

import pytest

from sft_jax.config import RunConfig
from sft_jax.config.run import leaf_fields

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(
    r"(?<![\w/.:-])(?:sft_jax|tests|docs|launch|configs|bench)/[\w./*-]+\.(?:py|md|sh|yaml|sbatch|ipynb)\b"
)

OPTION = re.compile(r"(?<![\w-])--([a-z]+\.[a-z][a-z_0-9-]*)")


def prose(text: str) -> str:
    """A page without its code blocks, which hold other links than the page's."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", LINK.sub(heading, heading).lower()).replace(" ", "-")
        found.add(next(name for n in range(100) if (name := f"{slug}-{n}" if n else slug) not in found))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_of_a_page_lead_somewhere(page):
    text, broken = page.read_text(encoding="utf-8"), []
    for link in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    broken += [path for path in PATH.findall(text) if not any(ROOT.glob(path))]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_of_a_page_are_fields_of_the_config(page):
    fields = {name for name, _, _ in leaf_fields(RunConfig())}
    named = {option.replace("-", "_") for option in OPTION.findall(page.read_text(encoding="utf-8"))}
    assert named <= fields


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= set(LINK.findall(index))
