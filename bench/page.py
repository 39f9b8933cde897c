"""The results as Markdown: the tables that docs/benchmarks.md holds."""

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
NONE = "-"


def page(result: Row) -> str:
    """Everything that was measured, as far as it got."""
    machine, sections = result["machine"], result["sections"]
    versions = machine.get("versions") or {}
    named = ", ".join(f"{name} {versions[name]}" for name in ("jax", "torch", "transformers") if versions.get(name))
    parts = [
        f"{machine.get('card') or machine.get('device') or 'unknown device'}; {named}; {result['made']}"
        + ("; tiny form" if result["tiny"] else ""),
    ]
    for name, write in (("attention", _attention), ("parity", _parity), ("steps", _steps)):
        if name in sections:
            parts += [f"### {TITLES[name]}", *write(sections[name]["cases"]), *_troubles(sections[name]["cases"])]
    return "\n\n".join(parts) + "\n"


TITLES = {
    "attention": "Attention against the reference, and its time",
    "parity": "The same steps on this device and on the CPU",
    "steps": "Training steps, beside torch and transformers",
}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def _attention(cases: list[Row]) -> list[str]:
    compared = [row for row in cases if "errors" in row]
    timed = [row for row in cases if "tflops" in row]
    anchors = {_shape(row): row["seconds"] for row in timed if row["implementation"] == "anchor"}
    errors = ("out", "dq", "dk", "dv")
    return [
        _table(
            ("implementation", "dtype", "rows", "window", "soft-cap", *errors, "allowed"),
            (
                (
                    row["implementation"], row["dtype"], _shape(row) + _packed(row), _or_none(row["window"]),
                    _or_none(row["softcap"]), *(f"{row['errors'][name]:.1e}" for name in errors),
                    f"{row['tolerance']:.0e}",
                )
                for row in compared
            ),
        ),
        _table(
            ("implementation", "rows", "ms", "TFLOP/s", "anchor's time / its"),
            (
                (
                    row["implementation"], _shape(row) + _packed(row), f"{row['seconds'] * 1e3:.2f}",
                    f"{row['tflops']:.1f}",
                    NONE if row["packed"] or _shape(row) not in anchors
                    else f"{anchors[_shape(row)] / row['seconds']:.2f}",
                )
                for row in timed
            ),
        ),
    ]  # fmt: skip


def _shape(row: Row) -> str:
    return f"{row['rows']} x {row['length']}, {row['heads']}/{row['kv_heads']} heads of {row['head_dim']}"


def _packed(row: Row) -> str:
    return ", packed" if row["packed"] else ""


def _or_none(value: Any) -> str:
    return NONE if value is None else str(value)


def _parity(cases: list[Row]) -> list[str]:
    head = ("dtype", "steps", "loss differs by", "allowed", "gradient norm differs by", "allowed")
    rows = [
        (
            row["dtype"], str(row["steps"]), f"{row['differences']['loss']:.1e}", f"{row['tolerance']['loss']:.0e}",
            f"{row['differences']['grad_norm']:.1e}", f"{row['tolerance']['grad_norm']:.0e}",
        )
        for row in cases
        if "differences" in row
    ]  # fmt: skip
    return [_table(head, rows)]


def _steps(cases: list[Row]) -> list[str]:
    head = (
        "model", "rows", "remat", "side", "tokens/s", "MFU", "ms/step", "peak GiB", "compile s", "ours / torch",
    )  # fmt: skip
    rows = [
        (
            row["model"], f"{row['rows']} x {row['length']}{_packed(row)}", row["remat"], row["side"],
            f"{row['tokens_per_second']:,.0f}", f"{row['mfu']:.1%}" if row.get("mfu") else NONE,
            f"{row['step_seconds'] * 1e3:.1f}",
            f"{row['peak_bytes'] / 2**30:.1f}" if row.get("peak_bytes") else NONE, f"{row['compile_seconds']:.0f}",
            f"{row['ours_over_torch']:.2f}" if row.get("ours_over_torch") else NONE,
        )
        for row in cases
        if "tokens_per_second" in row
    ]  # fmt: skip
    return [_table(head, rows)]


def _troubles(cases: list[Row]) -> list[str]:
    """What was not measured, a line each."""
    lines = []
    for row in cases:
        if row["status"] != "done":
            names = ("side", "implementation", "dtype", "model", "rows", "length", "head_dim", "packed", "remat")
            about = ", ".join(f"{name} {row[name]}" for name in names if name in row)
            lines.append(f"- {row['status']}: {about or 'the section'}: {row.get('why', 'beyond what is allowed')}")
    return ["\n".join(lines)] if lines else []
