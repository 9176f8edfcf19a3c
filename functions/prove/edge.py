"""The usual edge functions, to race them in the place of the core (`lastcall prove --way edge`).

This is commonly written: an end updates the batch's status, and then the status of its contacts. A dial loop reads a
page of pending contacts, and for each calls the carrier, updates the contact, and waits as a call rate asks. Each
statement is a transaction of its own, as a request to PostgREST is. Nothing is locked, and nothing is asked between
the page and the call.

The loop is spared what breaks such functions as well: no two of them dial one batch, and none is killed or frozen.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from uuid import uuid4

import httpx2
import psycopg
from psycopg.rows import dict_row

from .ways import End
from .world import Batch, Row, Session

PAGE = 50
"""Contacts that the loop reads at a time."""
BETWEEN_S = 0.2
"""Seconds between two calls of a batch: 300 calls a minute, faster than such loops usually are."""
_LOOK_AGAIN_S = 0.5
_FRESH_S = 2.0
"""For so many seconds a page counts as just read."""

_SKIP = "update campaign_contacts set status = 'skipped' where status in ('pending', 'scheduled') and"
_HELD_BY = {"campaign": "campaign_id", "agent": "agent_mapping_id", "caller_number": "from_number"}


class Pages:
    """When the dial loop read its last page of each batch, from the lines that it prints."""

    def __init__(self) -> None:
        self._read_at: dict[str, float] = {}
        self._changed = threading.Condition()

    def follow(self, lines: Iterable[str]) -> None:
        """Note the pages of the loop until it ends. A page that is not full is no page worth a race."""
        for line in lines:
            word, batch, size = line.split()
            if word == "page" and int(size) == PAGE:
                with self._changed:
                    self._read_at[batch] = time.monotonic()
                    self._changed.notify_all()

    def wait(self, batches: Sequence[Batch], over: threading.Event) -> None:
        """Wait until the loop has just read a page of one of these batches, or the race is over."""

        def is_fresh() -> bool:
            since = time.monotonic() - _FRESH_S
            return any(self._read_at.get(batch.id, 0.0) > since for batch in batches)

        with self._changed:
            while not over.is_set() and not self._changed.wait_for(is_fresh, _LOOK_AGAIN_S):
                pass


class EdgeWay:
    """Updates of the batch, and then of its contacts."""

    def __init__(self, session: Session, pages: Pages, over: threading.Event) -> None:
        self._session = session
        self._pages = pages
        self._over = over

    def prepare(self, end: End, batches: Sequence[Batch]) -> None:
        if end.scope not in ("contacts", "number"):
            self._pages.wait(batches, self._over)

    def end(self, end: End) -> Row:
        rows = self._session.rows
        if end.what == "cancel":
            rows("update call_batches set status = 'cancelled', completed_at = now() where id = %s", end.id)
            rows(f"{_SKIP} batch_id = %s", end.id)
            return {}
        if end.what in ("stop", "pause"):
            status = "stopped" if end.what == "stop" else "paused"
            rows("update call_batches set status = %s where id = %s", status, end.id)
        elif end.what == "skip":
            rows(f"{_SKIP} batch_id = %s and id = any (%s)", end.id, list(end.contacts))
        elif end.what == "opt_out":
            rows("insert into do_not_call values (%s, %s) on conflict do nothing", end.agency, end.id)
            rows(f"{_SKIP} agency_id = %s and phone_number = %s", end.agency, end.id)
        else:
            self._set_held(end, "processing", "paused")
        return {}

    def resume(self, batch: str) -> Row:
        self._session.rows(
            "update call_batches set status = 'processing' where id = %s and status in ('paused', 'stopped')", batch
        )
        return {}

    def lift(self, end: End, reply: Row) -> Row:
        self._set_held(end, "paused", "processing")
        return reply

    def _set_held(self, end: End, before: str, after: str) -> None:
        column = _HELD_BY.get(end.scope)
        scope = f" and {column} = %s" if column else ""
        self._session.rows(
            f"update call_batches set status = %s where agency_id = %s and status = %s{scope}",  # noqa: S608
            after,
            end.agency,
            before,
            *([end.id] if column else []),
        )

    def is_silent(self, batches: Sequence[Batch]) -> bool | None:  # noqa: ARG002 - nothing tells
        return None


def recount(session: Session, agencies: Sequence[str]) -> None:
    """Make the counters of the batches right: counting is not what the edge functions are tried for."""
    session.rows(
        "select private.recount_batch(id) from call_batches where agency_id = any (%s::uuid[])", list(agencies)
    )


async def dial(database_url: str, carrier_url: str) -> None:
    """Dial the batches that are being processed, each by a loop of its own, until SIGTERM; each call is recorded then.
    Prints `ready`, and a line for each page."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        httpx2.AsyncClient(base_url=carrier_url, trust_env=False, timeout=30) as http,
        await _connect(database_url) as connection,
        asyncio.TaskGroup() as tasks,
    ):
        begun: set[str] = set()
        print("ready", flush=True)
        while not stop.is_set():
            batches = await connection.execute("select id::text from call_batches where status = 'processing'")
            for batch in await batches.fetchall():
                if batch["id"] not in begun:
                    begun.add(batch["id"])
                    tasks.create_task(_dial_batch(database_url, http, batch["id"], stop))
            await asyncio.sleep(_LOOK_AGAIN_S)


async def _dial_batch(database_url: str, http: httpx2.AsyncClient, batch: str, stop: asyncio.Event) -> None:
    async with await _connect(database_url) as connection:
        while not stop.is_set():
            found = await connection.execute("select status::text from call_batches where id = %s", [batch])
            (row,) = await found.fetchall()
            if row["status"] == "cancelled":
                return
            if row["status"] == "processing":
                await _dial_page(connection, http, batch, stop)
            await asyncio.sleep(_LOOK_AGAIN_S)


async def _dial_page(
    connection: psycopg.AsyncConnection[Row], http: httpx2.AsyncClient, batch: str, stop: asyncio.Event
) -> None:
    page = await connection.execute(
        "select id, phone_number from campaign_contacts"
        " where batch_id = %s and status = 'pending' order by id limit %s",
        [batch, PAGE],
    )
    contacts = await page.fetchall()
    print("page", batch, len(contacts), flush=True)
    for contact in contacts:
        if stop.is_set():
            return
        call = {
            "batch_id": batch,
            "call_id": contact["id"],
            "lease": str(uuid4()),
            "contact_id": contact["id"],
            "to": contact["phone_number"],
        }
        await http.post("/calls", json=call)
        await connection.execute(
            "update campaign_contacts set status = 'completed', attempts = attempts + 1 where id = %s", [contact["id"]]
        )
        await asyncio.sleep(BETWEEN_S)


async def _connect(database_url: str) -> psycopg.AsyncConnection[Row]:
    return await psycopg.AsyncConnection.connect(database_url, autocommit=True, row_factory=dict_row)


def main() -> None:
    """Dial as the environment says."""
    asyncio.run(dial(os.environ["DATABASE_URL"], os.environ["CARRIER_URL"]))
