"""How the operator's commands show what they got: tables and progress, on a terminal or as plain lines."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..local import printable
from .watching import Progress

if TYPE_CHECKING:
    from rich.live import Live

Row = Sequence[object]


def say(text: str) -> None:
    """Print a line as it is."""
    print(printable(text))


def note(text: str) -> None:
    """Print a line that is no part of the result."""
    print(f"lastcall: {printable(text)}", file=sys.stderr)


def write_json(value: Any) -> None:
    """Print one JSON value, on a line, as it is made."""
    print(json.dumps(value), flush=True)


def write_table(titles: Sequence[str], rows: Sequence[Row]) -> None:
    """Print rows under their titles, numbers to the right."""
    cells = [[text(cell) for cell in row] for row in rows]
    columns = [[row[n] for row in rows if row[n] is not None] for n in range(len(titles))]
    numeric = [bool(column) and all(isinstance(cell, int | float) for cell in column) for column in columns]
    if is_terminal():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for title, column, to_right in zip(titles, columns, numeric, strict=True):
            # Only what has words is broken where the terminal is too narrow.
            is_prose = any(" " in text(cell) for cell in column)
            table.add_column(title, justify="right" if to_right else "left", no_wrap=not is_prose)
        for line in cells:
            table.add_row(*(Text(cell) for cell in line))  # Text: no markup in what others wrote
        Console(highlight=False).print(table)
        return
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    for line in ([*titles], *cells):
        aligned = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, numeric, strict=True)
        )
        print("  ".join(aligned).rstrip())


def text(value: object) -> str:
    """A value as it is shown."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return printable(", ".join(map(str, value)))
    if isinstance(value, dict):
        return printable(", ".join(f"{name} {item}" for name, item in value.items()))
    return printable(str(value))


def is_terminal() -> bool:
    """Whether there is somebody to draw for, and something to draw with."""
    drawable = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return drawable and importlib.util.find_spec("rich") is not None


class ProgressDisplay:
    """Shows how far a batch is, again and again: in place on a terminal, or as a line for each change."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._last = ""

    def __enter__(self) -> ProgressDisplay:
        if is_terminal():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(highlight=False), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        line = _progress_line(progress)
        if self._live is not None:
            from rich.console import Group
            from rich.progress_bar import ProgressBar
            from rich.text import Text

            batch = progress.batch
            done = batch["total_contacts"] - batch["remaining_count"]
            bar = ProgressBar(total=max(batch["total_contacts"], 1), completed=done, width=60)
            self._live.update(Group(Text(batch_title(batch)), bar, Text(line)), refresh=True)
        elif line != self._last:
            print(line, flush=True)
        self._last = line


def _progress_line(progress: Progress) -> str:
    batch = progress.batch
    parts = [
        f"{batch['status']} {batch['progress_percentage']}%",
        f"{batch['remaining_count'] - batch['in_progress']:,} to call",
        f"{batch['in_progress']:,} in progress",
        f"{batch['completed']:,} completed",
        f"{batch['failed']:,} failed",
        f"{batch['skipped']:,} skipped",
    ]
    if progress.finished_per_minute is not None:
        parts.append(f"{progress.finished_per_minute:,.0f} finished a minute")
    if progress.eta_seconds is not None:
        minutes, seconds = divmod(progress.eta_seconds, 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
    if batch["waiting_for"]:
        parts.append(waiting(batch))
    return ", ".join(parts)


def waiting(batch: dict[str, Any]) -> str:
    """The reason why the batch waits, and until when."""
    until = f" until {batch['waiting_until']}" if batch["waiting_until"] else ""
    return f"waiting for {batch['waiting_for']}{until}" if batch["waiting_for"] else ""


def batch_title(batch: dict[str, Any]) -> str:
    """The batch as people call it."""
    name = f" '{printable(batch['name'])}'" if batch["name"] else ""
    return f"batch {batch['id']}{name}"


@contextmanager
def reading(path: Path, *, quiet: bool) -> Iterator[BinaryIO]:
    """The file, opened to be sent; on a terminal with a bar of how much of it is."""
    if quiet or not is_terminal():
        with path.open("rb") as file:
            yield file
        return
    from rich import progress

    with progress.open(path, "rb", description=printable(path.name), transient=True) as shown:
        yield shown
