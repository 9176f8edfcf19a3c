"""Polling for a condition that another thread, process or session brings about."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object]) -> None:
    """Wait for at most a minute until the condition holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it has not come to that for a minute"
        time.sleep(0.005)
