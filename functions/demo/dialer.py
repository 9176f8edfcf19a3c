"""A dialer as it would be built for real: it claims contacts in groups, passes start_call as the last
step before the carrier, waits for each call's end, and applies the results in groups.

It never looks whether a batch was cancelled or stopped: start_call does.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from typing import Any

import httpx2

from .._shared.auth import Caller
from .._shared.database import Database, connect_database
from .._shared.errors import FunctionError
from .._shared.settings import Settings

SERVICE = Caller("service_role", {"role": "service_role"})
GROUP = 20
"""Most contacts claimed at a time."""
CLAIMERS = 3
LEASE_S = 30
GATHER_S = 0.05
"""Seconds in which results come together before they are applied."""
TICK_S = 1.0
"""Seconds between two runs of release_expired_leases and process_batches."""


class Dialer:
    """Dials whatever batch there is, until it is cancelled."""

    def __init__(self, database: Database, carrier: httpx2.AsyncClient) -> None:
        self._database = database
        self._carrier = carrier
        self._results: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self._maybe_work = asyncio.Event()
        """Set when there may be something to claim again: calls ended, batches started."""

    async def run(self) -> None:
        """Dial. Raises what the database refuses: the dialer has no business to go on then."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick())
            tasks.create_task(self._apply_results())
            for _ in range(CLAIMERS):
                tasks.create_task(self._claim(tasks))

    async def _claim(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            self._maybe_work.clear()
            claimed = await self._call("claim_contacts", max_contacts=GROUP, lease_seconds=LEASE_S)
            if not claimed:
                await self._maybe_work.wait()
                continue
            batch_id = claimed[0]["batch_id"]
            let_through = await self._call(
                "start_call", batch_id=batch_id, call_ids=[contact["call_id"] for contact in claimed]
            )
            for contact in claimed:
                if contact["call_id"] in let_through:
                    tasks.create_task(self._place_call(contact))

    async def _place_call(self, contact: dict[str, Any]) -> None:
        call = {"call_id": contact["call_id"], "batch_id": contact["batch_id"], "to": contact["phone_number"]}
        try:
            response = await self._carrier.post("/calls", json=call)
            response.raise_for_status()
            result = response.json()
        except httpx2.HTTPError:
            result = {"status": "failed", "outcome": "carrier_unreachable"}
        await self._results.put((contact["batch_id"], {"call_id": contact["call_id"], **result}))

    async def _apply_results(self) -> None:
        while True:
            batch_id, result = await self._results.get()
            results = defaultdict(list, {batch_id: [result]})
            await asyncio.sleep(GATHER_S)
            while not self._results.empty():
                batch_id, result = self._results.get_nowait()
                results[batch_id].append(result)
            for batch_id, of_batch in results.items():
                await self._call("finish_call", batch_id=batch_id, results=of_batch)
            self._maybe_work.set()

    async def _tick(self) -> None:
        while True:
            await self._call("release_expired_leases")
            await self._call("process_batches")
            self._maybe_work.set()
            await asyncio.sleep(TICK_S)

    async def _call(self, procedure: str, **arguments: Any) -> list[Any]:
        while True:
            try:
                return await self._database.call(SERVICE, procedure, arguments)
            except FunctionError as error:
                if error.status != 503:
                    raise
                await asyncio.sleep(float(error.headers["Retry-After"]))


def dial() -> None:
    """Dial the batches of DATABASE_URL at the carrier of CARRIER_URL until killed. Prints `ready`."""
    asyncio.run(_dial(os.environ["DATABASE_URL"], os.environ["CARRIER_URL"]))


async def _dial(database_url: str, carrier_url: str) -> None:
    database = connect_database(Settings(database_url=database_url))
    unlimited = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=carrier_url, timeout=60, limits=unlimited, trust_env=False) as carrier:
        await database.ping()
        print("ready", flush=True)  # noqa: T201
        await Dialer(database, carrier).run()
