"""The output of the demo: lines of text, and the batches' progress, live on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from .sql_console import Progress

_PLAIN_EVERY_S = 2.0


class Display:
    """Where the demo prints to. Without a terminal: plain lines, no control characters."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self._console = Console(force_terminal=None if terminal else False, highlight=False)
        live = terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, auto_refresh=False) if live else None
        self._showing = False
        self._next_plain = 0.0

    def say(self, text: str = "", style: str | None = None) -> None:
        """Print a line as it is, however long."""
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    def show(self, titles: Sequence[str], progress: Sequence[Progress]) -> None:
        """Show how far the batches are: as a live table, or as a line every 2 seconds."""
        if self._live is not None:
            if not self._showing:
                self._live.start()
                self._showing = True
            self._live.update(_table(titles, progress), refresh=True)
        elif time.monotonic() >= self._next_plain:
            self._next_plain = time.monotonic() + _PLAIN_EVERY_S
            self.say("  " + "; ".join(_line(title, batch) for title, batch in zip(titles, progress, strict=True)))

    def freeze(self) -> None:
        """Leave the live table, if there is one, as it stands."""
        if self._live is not None and self._showing:
            self._live.stop()
            self._showing = False


def _line(title: str, batch: Progress) -> str:
    return (
        f"{title} {batch.status}: {batch.in_progress} in progress, {batch.completed:,} completed, "
        f"{batch.failed:,} failed, {batch.skipped:,} skipped, {batch.remaining:,} to call"
    )


def _table(titles: Sequence[str], progress: Sequence[Progress]) -> Table:
    table = Table("batch", "status", "", "in progress", "completed", "failed", "skipped", "to call")
    for column in table.columns[3:]:
        column.justify = "right"
    for title, batch in zip(titles, progress, strict=True):
        done = batch.total_contacts - batch.remaining - batch.in_progress
        counts = (batch.in_progress, batch.completed, batch.failed, batch.skipped, batch.remaining)
        bar = ProgressBar(total=batch.total_contacts, completed=done, width=20)
        table.add_row(title, batch.status, bar, *(f"{count:,}" for count in counts))
    return table
