"""Dialers with carriers that do as a test says."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from functions._shared.auth import Caller
from functions._shared.database import Database, connect_database
from functions._shared.settings import Settings
from functions.dialer.carrier import Call, Finished, InProgress, OpenCall
from functions.dialer.dialer import Dialer
from functions.dialer.place_by import PlaceBy

from .database import TestDatabase

Answer = Callable[[Call], Awaitable[InProgress | Finished]]


async def take(call: Call) -> InProgress:
    """The carrier has it."""
    return InProgress(f"c-{call.call_id}")


async def complete(call: Call) -> Finished:
    """It is over at once."""
    return Finished(status="completed", outcome="answered", carrier_call_id=f"c-{call.call_id}", duration_seconds=3)


class ScriptedCarrier:
    """A carrier that answers as told, and remembers what reached it."""

    def __init__(self, answer: Answer = take) -> None:
        self.answer = answer
        self.arrived: list[Call] = []
        self.asked: list[int] = []
        self.told_to_end: list[tuple[str, int]] = []
        self.known: dict[int, InProgress | Finished] = {}

    async def place(self, call: Call, place_by: PlaceBy) -> InProgress | Finished:
        place_by.check()
        self.arrived.append(call)
        return await self.answer(call)

    async def find(self, call: OpenCall) -> InProgress | Finished | None:
        self.asked.append(call.call_id)
        return self.known.get(call.call_id)

    async def withdraw(self, call: OpenCall) -> InProgress | Finished | None:
        self.told_to_end.append(("withdraw", call.call_id))
        return self.known.get(call.call_id)

    async def hang_up(self, call: OpenCall) -> InProgress | Finished | None:
        self.told_to_end.append(("hang_up", call.call_id))
        return self.known.get(call.call_id)

    async def aclose(self) -> None:
        pass


class WatchedDatabase:
    """The database, with what a test does before a procedure is called, perhaps awaited, and after the answer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.called: list[tuple[float, str]] = []
        self.before: dict[str, Callable[[], Any]] = {}
        self.after: dict[str, Callable[[], Any]] = {}

    async def run(self, caller: Caller, procedure: str, arguments: dict[str, Any]) -> list[Any]:
        self.called.append((time.monotonic(), procedure))
        waits = self.before.get(procedure, lambda: None)()
        if inspect.isawaitable(waits):
            await waits
        rows = await self._database.run(caller, procedure, arguments)
        self.after.get(procedure, lambda: None)()
        return rows

    async def ping(self) -> None:
        await self._database.ping()

    async def close(self) -> None:
        await self._database.close()


def dial_settings(db: TestDatabase, **settings: Any) -> Settings:
    return Settings(**{"database_url": db.functions_uri, "pool_timeout_s": 60.0, **settings})


@asynccontextmanager
async def a_dialer(db: TestDatabase, carrier: Any, **settings: Any) -> AsyncIterator[tuple[Dialer, WatchedDatabase]]:
    """A dialer that does nothing yet, and that a slow machine is given the time to record everything."""
    of = dial_settings(db, **settings)
    database = WatchedDatabase(connect_database(of))
    dialer = Dialer(database, carrier, of)
    dialer.RECORD_WITHIN_S = 60.0
    try:
        yield dialer, database
    finally:
        await database.close()


@asynccontextmanager
async def dialing(db: TestDatabase, carrier: Any, **settings: Any) -> AsyncIterator[WatchedDatabase]:
    """A dialer at work as a service, which is stopped at the end of the block."""
    stop = asyncio.Event()
    async with a_dialer(db, carrier, **settings) as (its_dialer, database):
        work = asyncio.create_task(its_dialer.run(stop))
        try:
            yield database
        finally:
            stop.set()
            await work


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it is so."""
    give_up_at = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < give_up_at, "it has not come to that for 90 seconds"
        await asyncio.sleep(0.01)


def dial_once(db: TestDatabase, carrier: Any, max_calls: int = 100, **settings: Any) -> dict[str, Any]:
    """One bounded run; its reply."""

    async def run() -> dict[str, Any]:
        async with a_dialer(db, carrier, **settings) as (its_dialer, _):
            done = await its_dialer.run_once(max_calls, 30)
        await carrier.aclose()
        return done.reply()

    return asyncio.run(run())
