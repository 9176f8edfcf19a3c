"""Who may use the database's connections, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import anyio

from .errors import FunctionError, unavailable
from .settings import Settings

# What keeps calls from starting: it does not wait for those who read, create or import.
_ENDING = ("cancel_batch", "pause_batch", "stop_batch")


def no_connection() -> FunctionError:
    """503: no connection is free, and none became free in time."""
    return unavailable("no_connection", "No database connection is free; try again")


class Turns:
    """Lets callers wait for their turn: so many at a time, in the order in which they came."""

    def __init__(self, number: int, settings: Settings) -> None:
        self._free = anyio.Semaphore(number)
        self.waiting = 0
        self._settings = settings

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """A turn, for the block. Raises 503 after pool_timeout_s, and at once when pool_max_waiting others wait."""
        try:
            self._free.acquire_nowait()
        except anyio.WouldBlock:
            await self._wait()
        try:
            yield
        finally:
            self._free.release()

    async def _wait(self) -> None:
        if self.waiting >= self._settings.pool_max_waiting:
            raise no_connection()
        self.waiting += 1
        try:
            with anyio.fail_after(self._settings.pool_timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise no_connection() from None
        finally:
            self.waiting -= 1


class Admission:
    """Who may use the connections: of all procedures but those that end calls only so many at a time that some
    connections are left for these. Health checks, for which nobody has to sign in, take turns at one."""

    def __init__(self, settings: Settings) -> None:
        self._others = Turns(max(settings.pool_size - settings.pool_reserved, 1), settings)
        self._pings = Turns(1, settings)

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return self._others.waiting + self._pings.waiting

    def call(self, procedure: str) -> AbstractAsyncContextManager[None]:
        """A block that calls the procedure. Raises 503."""
        return nullcontext() if procedure in _ENDING else self._others.take()

    def ping(self) -> AbstractAsyncContextManager[None]:
        """A block that asks whether the database answers. Raises 503."""
        return self._pings.take()
