"""The demo at the SQL console: what it sets up, and what it reads afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from .verdict import Books, CallName


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

    def set_up_calling(self, agency_id: UUID) -> dict[str, str]:
        """Give the agency what batches are created with: an agent, a campaign and an active number."""
        agent = self._new(
            "insert into agent_mappings (agency_id, ultravox_agent_id, ultravox_agent_name)"
            " values (%s, 'agent', 'Sales Agent') returning id",
            agency_id,
        )
        campaign = self._new(
            "insert into campaigns (agency_id, name) values (%s, 'Q1 Outreach') returning id", agency_id
        )
        number = "+15551234567"
        self._new(
            "insert into agency_phone_numbers (agency_id, phone_number, status) values (%s, %s, 'active') returning id",
            agency_id,
            number,
        )
        return {"agent_mapping_id": str(agent), "campaign_id": str(campaign), "from_number": number}

    def rotate_webhook_secret(self, agency_id: UUID) -> str:
        """The secret by which the carrier's webhooks for the agency are known."""
        (row,) = self._rows("select webhook_secret from rotate_webhook_secret(%s)", agency_id)
        secret: str = row["webhook_secret"]
        return secret

    def lift_call_rate(self, batch_id: UUID) -> None:
        """Let the batch be dialed as fast as max_concurrent calls at a time allow: nobody watches a demo at the
        60 calls a minute that a batch can be created with."""
        self._connection.execute("update call_batches set calls_per_minute = null where id = %s", [batch_id])

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

    def started_calls(self, batch_id: UUID) -> frozenset[CallName]:
        """The calls of the batch that start_call has let through by now."""
        rows = self._rows("select id, lease::text from calls where batch_id = %s and started_at is not null", batch_id)
        return frozenset(map(_name, rows))

    def started_while_paused(self, batch_id: UUID) -> frozenset[CallName]:
        """The calls of the batch that start_call let through, by time, after it was paused and before it was
        resumed."""
        # All of them when nothing says that the batch was paused and resumed at all.
        rows = self._rows(
            "select c.id, c.lease::text from calls c cross join ("
            "    select min(e.created_at) filter (where e.action = 'pause') as paused_at,"
            "           max(e.created_at) filter (where e.action = 'resume') as resumed_at"
            "      from batch_events e where e.batch_id = %s) e"
            " where c.batch_id = %s and coalesce(c.started_at between e.paused_at and e.resumed_at,"
            "                                    c.started_at is not null)",
            batch_id,
            batch_id,
        )
        return frozenset(map(_name, rows))

    def webhooks(self, batch_id: UUID) -> dict[str, int]:
        """How many events about calls of the batch have each status; `late` are those that were ignored because
        the call was over already."""
        rows = self._rows(
            "select case when q.status = 'ignored' and q.error_message = 'The call was over already' then 'late'"
            "            else q.status::text end as status, count(*) as n"
            "  from webhook_queue q where q.payload #>> '{call,metadata,batch_id}' = %s group by 1",
            str(batch_id),
        )
        return {row["status"]: row["n"] for row in rows}

    def books(self, batch_id: UUID) -> Books:
        """The rows of a batch that was cancelled or stopped, as the database holds them."""
        contacts = self._rows(
            "select status::text, count(*) as n from campaign_contacts where batch_id = %s"
            " group by campaign_contacts.status order by campaign_contacts.status",
            batch_id,
        )
        # A call is late, too, when nothing says that the batch was cancelled or stopped at all.
        started = self._rows(
            "select c.id, c.lease::text, c.carrier_call_id, c.status::text,"
            "       coalesce(c.started_at <= (select min(e.created_at) from batch_events e"
            "         where e.batch_id = c.batch_id and e.action in ('cancel', 'stop')), false) as before"
            "  from calls c where c.batch_id = %s and c.started_at is not null",
            batch_id,
        )
        unbalanced = self._rows("select counter, stored, counted from private.check_counters(%s)", batch_id)
        (batch,) = self._rows("select status::text from call_batches where id = %s", batch_id)
        return Books(
            status=batch["status"],
            contacts={row["status"]: row["n"] for row in contacts},
            started={_name(row): row["before"] for row in started},
            placed={
                _name(row): (row["carrier_call_id"], row["status"])
                for row in started
                if row["carrier_call_id"] is not None
            },
            webhooks=self.webhooks(batch_id),
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


def _name(call: dict[str, Any]) -> CallName:
    return call["id"], call["lease"] or ""
