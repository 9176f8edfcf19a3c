"""Until when the request for a call may leave for the carrier, by clocks that go on while the machine is suspended."""

from __future__ import annotations

import time

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)
"""Goes on while the machine is suspended; Linux alone has this clock."""


class CallLateError(Exception):
    """Surely not placed: the request did not leave in time, and never will."""


class PlaceBy:
    """The moment within_s seconds after now.

    Two clocks measure the time, and the one that went further decides. No step of the wall clock lengthens the time;
    and a suspended machine, whose monotonic clock may stand still, has a wall clock that is put right.
    """

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._began_s = _clocks_s()

    def check(self) -> None:
        """Raise CallLateError when the moment is over."""
        if any(now - began > self._within_s for now, began in zip(_clocks_s(), self._began_s, strict=True)):
            raise CallLateError("the request did not leave in time")


def _clocks_s() -> tuple[float, float]:
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK), time.time()
