"""The dialer as a process: `lastcall process`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec

from .._shared.database import Database, connect_database
from .._shared.errors import FunctionError
from .._shared.log import logger
from .._shared.settings import Settings
from ..telemetry import ProcessTelemetry
from .carrier import connect_carrier
from .dialer import TICK_S, Dialer

RUN_S = 50.0
"""Seconds for which one run claims: a run each minute has ended when the next one begins."""


async def dial_until_stopped(settings: Settings) -> int:
    """Dial until SIGTERM or SIGINT, and end in peace. Prints `ready` when the database answers. Returns the
    exit status. Raises SettingsError: there is no port for metrics."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with _dialer(settings, settings.dialer_metrics_ports) as (database, dialer):
        while not stop.is_set() and not await _answers(database):
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), TICK_S)
        if not stop.is_set():
            print("ready", flush=True)  # noqa: T201
        try:
            await dialer.run(stop)
        except Exception:
            logger.exception("dialer broke off")
            return 1
    return 0


async def dial_once(settings: Settings, max_calls: int) -> int:
    """One bounded run, whose reply is printed. Returns the exit status."""
    async with _dialer(settings, None) as (_, dialer):
        try:
            done = await dialer.run_once(max_calls, RUN_S)
        except Exception:
            logger.exception("Failed to process batches")
            return 1
    print(msgspec.json.encode(done.reply()).decode())  # noqa: T201
    return 0


@asynccontextmanager
async def _dialer(settings: Settings, metrics_ports: range | None) -> AsyncIterator[tuple[Database, Dialer]]:
    process = ProcessTelemetry(settings, metrics_ports, "lastcall-dialer")
    database, carrier = connect_database(settings, process.telemetry), connect_carrier(settings)
    try:
        async with process.running(database):
            yield database, Dialer(database, carrier, settings, process.telemetry)
    finally:
        await carrier.aclose()
        await database.close()


async def _answers(database: Database) -> bool:
    try:
        await database.ping()
    except FunctionError:
        return False
    return True
