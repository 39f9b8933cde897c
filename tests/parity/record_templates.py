"""`python -m tests.parity.record_templates` writes the table of docs/templates.md from what is found now."""

from pathlib import Path

from tests.parity.template_cases import FAMILIES
from tests.parity.template_check import row, table

DOCS = Path(__file__).parents[2] / "docs" / "templates.md"
START, END = "<!-- written by python -m tests.parity.record_templates -->\n", "<!-- end -->"


def main() -> None:
    before, rest = DOCS.read_text(encoding="utf-8").split(START)
    rows = "".join(row(name) + "\n" for name in FAMILIES)
    DOCS.write_text(before + START + table() + rows + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
