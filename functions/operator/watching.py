"""How fast a batch advances, from looking at it again and again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

_WINDOW_S = 60.0


@dataclass(frozen=True)
class Progress:
    """A batch as it was found, and how fast contacts were finished in the last minute of watching."""

    batch: dict[str, Any]
    finished_per_minute: float | None
    """Contacts completed or failed; None until two looks at it can tell."""

    @property
    def eta_seconds(self) -> int | None:
        """Seconds until none remains, if it goes on like this; None when it does not advance."""
        if not self.finished_per_minute or self.batch["status"] != "processing":
            return None
        remaining: int = self.batch["remaining_count"]
        return round(remaining / self.finished_per_minute * 60)


class Speedometer:
    """Makes a Progress of each look at the batch."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def look(self, batch: dict[str, Any], now: float) -> Progress:
        """now: seconds of a clock that only goes forward."""
        finished = batch["completed"] + batch["failed"]
        self._seen.append((now, finished))
        while now - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        return Progress(batch, (finished - before) / (now - since) * 60 if now > since else None)
