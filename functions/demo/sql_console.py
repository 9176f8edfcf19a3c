"""The demo at the SQL console: what it sets up, and what it reads afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from ..postgres_server import PostgresServer
from .verdict import Books

# Class of the advisory locks that number the demos at work in one server.
_LOCK_CLASS = 0x64656D6F  # "demo"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a batch is."""

    status: str
    total_contacts: int
    in_progress: int
    completed: int
    failed: int
    skipped: int
    remaining: int

    @property
    def dialed(self) -> int:
        """Contacts whose last call is done or going on."""
        return self.in_progress + self.completed + self.failed


class DatabaseClaim:
    """A fresh database of this demo's own, demo_1 or, while other demos are at work in the folder, the
    next free number; ours as long as the connection is open, which a killed demo's is not."""

    def __init__(self, server: PostgresServer) -> None:
        """Raises psycopg.Error."""
        self._connection = psycopg.connect(server.uri(), autocommit=True)
        number = 1
        while not self._try_number(number):
            number += 1
        self.name = f"demo_{number}"
        name = sql.Identifier(self.name)
        self._connection.execute(sql.SQL("drop database if exists {} with (force)").format(name))
        self._connection.execute(sql.SQL("create database {}").format(name))

    def _try_number(self, number: int) -> bool:
        row = self._connection.execute("select pg_try_advisory_lock(%s, %s)", [_LOCK_CLASS, number]).fetchone()
        return row is not None and bool(row[0])

    def close(self) -> None:
        """Leave the database to the next demo."""
        self._connection.close()


class SqlConsole:
    """The database as its admin sees it."""

    def __init__(self, uri: str) -> None:
        self._connection = psycopg.connect(uri, autocommit=True, row_factory=dict_row)

    def close(self) -> None:
        self._connection.close()

    def add_agency(self, name: str) -> UUID:
        return self._new("insert into agencies (name) values (%s) returning id", name)

    def add_user(self, agency_id: UUID, role: str, external_id: str | None = None) -> UUID:
        return self._new(
            "insert into users (agency_id, role, external_id) values (%s, %s, %s) returning id",
            agency_id,
            role,
            external_id,
        )

    def add_batch(self, agency_id: UUID, user_id: UUID, *, max_concurrent: int, external_id: str | None = None) -> UUID:
        """A batch without contacts, dialed as fast as max_concurrent calls at a time allow; a call that
        was not answered is tried again after 2 seconds."""
        return self._new(
            "insert into call_batches"
            " (agency_id, user_id, external_id, max_concurrent, calls_per_minute, retry_delay_seconds)"
            " values (%s, %s, %s, %s, null, 2) returning id",
            agency_id,
            user_id,
            external_id,
            max_concurrent,
        )

    def process_batches(self) -> None:
        """Start the batches that are due."""
        self._connection.execute("select process_batches()")

    def progress(self, batch_ids: Sequence[UUID]) -> list[Progress]:
        """How far these batches are, in this order."""
        rows = self._rows(
            "select s.id, s.status::text, s.total_contacts, s.in_progress, s.completed, s.failed, s.skipped,"
            "       s.remaining_count - s.in_progress as remaining"
            "  from v_call_batch_summary s where s.id = any (%s)",
            list(batch_ids),
        )
        found = {row.pop("id"): Progress(**row) for row in rows}
        return [found[batch_id] for batch_id in batch_ids]

    def started_calls(self, batch_id: UUID) -> frozenset[int]:
        """The calls of the batch that start_call has let through by now."""
        rows = self._rows("select id from calls where batch_id = %s and started_at is not null", batch_id)
        return frozenset(row["id"] for row in rows)

    def books(self, batch_id: UUID) -> Books:
        """What the database holds of a batch that was cancelled or stopped."""
        contacts = self._rows(
            "select status::text, count(*) as n from campaign_contacts where batch_id = %s"
            " group by campaign_contacts.status order by campaign_contacts.status",
            batch_id,
        )
        # A call is late, too, when nothing says that the batch was cancelled or stopped at all.
        started = self._rows(
            "select c.id, coalesce(c.started_at <= (select min(e.created_at) from batch_events e"
            "   where e.batch_id = c.batch_id and e.action in ('cancel', 'stop')), false) as before"
            "  from calls c where c.batch_id = %s and c.started_at is not null",
            batch_id,
        )
        unbalanced = self._rows("select counter, stored, counted from private.check_counters(%s)", batch_id)
        (batch,) = self._rows("select status::text from call_batches where id = %s", batch_id)
        return Books(
            status=batch["status"],
            contacts={row["status"]: row["n"] for row in contacts},
            started={row["id"]: row["before"] for row in started},
            unbalanced=[f"{row['counter']} is {row['stored']}, should be {row['counted']}" for row in unbalanced],
        )

    def claimable_when_resumed(self, batch_id: UUID) -> int:
        """How many contacts, of at most 20, a dialer could claim of a stopped batch if it were resumed:
        tried out, and undone."""
        with self._connection.transaction(force_rollback=True):
            self._connection.execute("select resume_batch(%s)", [batch_id])
            (row,) = self._rows("select count(*) as n from claim_contacts(20, 30, %s)", batch_id)
        return int(row["n"])

    def _rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        return self._connection.execute(query.encode(), values).fetchall()

    def _new(self, query: str, *values: Any) -> UUID:
        (row,) = self._rows(query, *values)
        new: UUID = row["id"]
        return new
