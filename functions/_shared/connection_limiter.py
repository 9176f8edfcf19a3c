"""A limit of the procedures that use the database's connections at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio

from .auth import Caller
from .errors import FunctionError, unavailable
from .log import logger
from .settings import Settings

CURRENT_AGENCY = "current_agency"
"""The procedure that tells the agency of a user."""
# The procedures that keep calls from starting. They do not wait for reads, creations or imports.
_ENDING = ("cancel_batch", "pause_batch", "stop_batch", "skip_contacts", "opt_out", "hold_calls")


def no_connection() -> FunctionError:
    """503: no connection is free, and none became free in time."""
    return unavailable("no_connection", "No database connection is free; try again")


def _batch_busy() -> FunctionError:
    """503, as the core refuses a batch that another request holds."""
    return unavailable("batch_busy", "Another request holds this batch; try again")


class Slots:
    """So many slots, given in the order in which callers come. refusal: the error when no slot becomes free."""

    def __init__(self, number: int, settings: Settings, refusal: Callable[[], FunctionError] = no_connection) -> None:
        self._free = anyio.Semaphore(number)
        self.waiting = 0
        self._settings = settings
        self._refusal = refusal

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Hold a slot for the block. Raises 503 after pool_timeout_s, and at once when pool_max_waiting others wait."""
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
            raise self._refusal()
        self.waiting += 1
        try:
            with anyio.fail_after(self._settings.pool_timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise self._refusal() from None
        finally:
            self.waiting -= 1


class SlotsByKey:
    """So many slots for each key."""

    def __init__(self, number: int, settings: Settings, refusal: Callable[[], FunctionError]) -> None:
        self._number = number
        self._settings = settings
        self._refusal = refusal
        self._slots: dict[Any, Slots] = {}
        self._users: dict[Any, int] = {}

    @property
    def waiting(self) -> int:
        """Callers that wait for a slot."""
        return sum(slots.waiting for slots in self._slots.values())

    @asynccontextmanager
    async def take(self, key: Any) -> AsyncIterator[None]:
        """Hold a slot of the key for the block. Raises 503, as Slots does."""
        slots = self._slots.setdefault(key, Slots(self._number, self._settings, self._refusal))
        self._users[key] = self._users.get(key, 0) + 1
        try:
            async with slots.take():
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._slots[key], self._users[key]


class ConnectionLimiter:
    """Limits how many procedures use the connections at a time.

    Of all procedures but those that end calls only so many run at a time that some connections are left for these. One
    agency has fewer than that many at a time, so that another one always finds a connection, and a user one for each
    batch, number or hold. Health checks, which need no login, share one slot.
    """

    def __init__(self, settings: Settings, find_agency: Callable[[Caller], Awaitable[Any]]) -> None:
        """find_agency: the agency of a caller, by a call of CURRENT_AGENCY."""
        self._find_agency = find_agency
        self._others = Slots(max(settings.pool_size - settings.pool_reserved, 1), settings)
        self._pings = Slots(1, settings)
        self._lookups = Slots(1, settings)
        self._repeats = SlotsByKey(1, settings, _batch_busy)
        self._agencies = SlotsByKey(max(settings.pool_reserved - 2, 1), settings, _too_many)
        self._first_is_here = False

    @property
    def waiting(self) -> int:
        """Callers that wait for a slot."""
        every = (self._others, self._pings, self._lookups, self._repeats, self._agencies)
        return sum(slots.waiting for slots in every)

    def slot(self, caller: Caller, procedure: str, arguments: dict[str, Any]) -> AbstractAsyncContextManager[None]:
        """Hold a connection's slot while the procedure runs. Raises 503."""
        if procedure in _ENDING:
            target = arguments.get("batch_id") or arguments.get("phone_number") or procedure
            return self._end(caller, str(target))
        return (self._lookups if procedure == CURRENT_AGENCY else self._others).take()

    def ping(self) -> AbstractAsyncContextManager[None]:
        """A block that asks whether the database answers. Raises 503."""
        return self._pings.take()

    @asynccontextmanager
    async def _end(self, caller: Caller, target: str) -> AsyncIterator[None]:
        # Not by the target alone: a stranger may name it, too.
        async with self._repeats.take((_user(caller), target)):
            if self._first_is_here:
                async with self._agencies.take(await self._agency(caller)):
                    yield
            else:
                # One may go on whosever it is, so that a request costs no look-up as long as it is the only one.
                self._first_is_here = True
                try:
                    yield
                finally:
                    self._first_is_here = False

    async def _agency(self, caller: Caller) -> str:
        try:
            agency = await self._find_agency(caller)
        except Exception:  # whatever it is, it does not keep a call from being ended
            logger.exception("agency not found")
            agency = None
        return str(agency or _user(caller))


def _user(caller: Caller) -> str:
    return str(caller.claims.get("sub", caller.role))


def _too_many() -> FunctionError:
    return unavailable("busy", "Too many such requests at a time; try again")
