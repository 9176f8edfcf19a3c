"""Each batch has a lane for the procedures that wait for its row, so that no batch waits for another batch's row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from .._shared.auth import Caller
from .._shared.database import Database
from .._shared.errors import FunctionError
from .._shared.log import logger
from .._shared.telemetry import Operation, Telemetry

GROUP_WINDOW_S = 0.03
"""Seconds in which results of a batch come together before they are recorded."""
RETRY_S = 1.0
"""Seconds until a group of results is recorded again after an error that says nothing else."""


class Connections:
    """The connections that lanes may use at a time: some of the pool's, so that claiming never waits for a lane."""

    def __init__(self, pool_size: int) -> None:
        self._free = asyncio.Semaphore(max(1, pool_size // 2))

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        async with self._free:
            yield


class Record(msgspec.Struct):
    """The news of a call. procedure: confirm_call or finish_call. origin: the operation that learned it."""

    procedure: str
    result: dict[str, Any]
    origin: Operation | None


class Recorder:
    """Records what became of calls, in groups: one lane for each batch."""

    def __init__(
        self,
        database: Database,
        caller: Caller,
        connections: Connections,
        telemetry: Telemetry,
        finished: Callable[[], None],
    ) -> None:
        """finished: called when calls have ended, since their places are free."""
        self._database = database
        self._caller = caller
        self._connections = connections
        self._telemetry = telemetry
        self._finished = finished
        self._waiting: dict[str, list[Record]] = {}
        self._lanes: dict[str, asyncio.Task[None]] = {}

    def add(self, batch_id: str, record: Record) -> None:
        """Record it soon, together with what else becomes of the batch's calls."""
        self._waiting.setdefault(batch_id, []).append(record)
        if batch_id not in self._lanes:
            self._lanes[batch_id] = asyncio.create_task(self._run_lane(batch_id))

    async def drain(self, within_s: float) -> None:
        """Wait until everything is recorded, for at most within_s seconds, and give up the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._lanes:
                    await asyncio.wait(self._lanes.values())
        left = list(self._lanes.values())
        for lane in left:
            lane.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _run_lane(self, batch_id: str) -> None:
        try:
            while batch_id in self._waiting:
                await asyncio.sleep(GROUP_WINDOW_S)
                groups: dict[str, list[Record]] = {}
                for record in self._waiting.pop(batch_id):
                    groups.setdefault(record.procedure, []).append(record)
                for procedure, group in groups.items():
                    links = [record.origin for record in group if record.origin is not None]
                    with self._telemetry.operation("record", "record", links=links, batch_id=batch_id):
                        await self._record(procedure, batch_id, [record.result for record in group])
                if "finish_call" in groups:
                    self._finished()
        finally:
            del self._lanes[batch_id]

    async def _record(self, procedure: str, batch_id: str, results: list[dict[str, Any]]) -> None:
        name = "confirmed" if procedure == "confirm_call" else "results"
        while True:
            try:
                async with self._connections.one():
                    arguments = {"batch_id": batch_id, name: results}
                    recorded = await self._database.run(self._caller, procedure, arguments)
            except FunctionError as error:
                if error.status != 503:
                    # The core rejected these results; repeating will not help. Reconciliation settles the calls.
                    fields = {"procedure": procedure, "batch_id": batch_id, "code": error.code}
                    logger.error("results refused", extra={"fields": fields})
                    return
                await asyncio.sleep(retry_after_s(error))
            except Exception:
                logger.exception("results not recorded", extra={"fields": {"batch_id": batch_id}})
                await asyncio.sleep(RETRY_S)
            else:
                for result in results:
                    self._telemetry.count("result", result.get("status", "confirmed"))
                unknown = [f"{call['call_id']} {call['lease']}" for call in recorded if call["result"] == "unknown"]
                if unknown:
                    # A crash or a failover took these calls back; the calls that have their ids now are unchanged.
                    about = {"procedure": procedure, "batch_id": batch_id, "calls": unknown}
                    logger.warning("results of no call", extra={"fields": about})
                return


def retry_after_s(error: FunctionError) -> float:
    """Seconds until the request may be repeated."""
    return float(error.headers.get("Retry-After", RETRY_S))
