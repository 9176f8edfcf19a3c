"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def table(title: str, note: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown section: title, what was measured, and the table, padded to be readable as text too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    # Numbers to the right; the first column is what they are about.
    aligned = [
        _line([cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in _cells(row, widths)]) for row in rows
    ]
    head = _line([cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in _cells(header, widths)])
    rule = _line(["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)])
    return "\n".join([f"### {title}", "", note, "", head, rule, *aligned, ""])


def milliseconds(seconds: float) -> str:
    """Enough digits to compare by, and no more."""
    value = seconds * 1000
    return f"{value:.1f}" if value < 100 else whole(value)


def whole(value: float) -> str:
    return f"{round(value):,}"


def ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[tuple[int, tuple[str, int]]]:
    return list(enumerate(zip(row, widths, strict=True)))
