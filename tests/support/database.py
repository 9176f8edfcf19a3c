"""A migrated database of a test's own, and what tests put into it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import dict_row

from functions.postgres_server import PostgresServer

Connection = psycopg.Connection[dict[str, Any]]


def dump_schema(bin_folder: Path, uri: str) -> str:
    """A database's schema as pg_dump writes it, with owners and privileges, without the migrations' history."""
    dumped = subprocess.run(
        [bin_folder / "pg_dump", "--schema-only", "--exclude-schema=supabase_migrations", uri],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # A random key against injection, new in each dump.
    return "\n".join(line for line in dumped.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


def schema(server: PostgresServer, database: str) -> str:
    """The schema as pg_dump writes it, with owners and privileges, without the migrations' history."""
    return dump_schema(server.bin_folder, server.uri(database))


def log_in_as(role: str, uri: str) -> str:
    """The URI of the same database for another role."""
    parts = urlsplit(uri)
    return parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl()


def connect(uri: str, **parameters: Any) -> Connection:
    """A connection whose statements are transactions, and whose rows are dicts."""
    return psycopg.connect(uri, autocommit=True, row_factory=dict_row, **parameters)


class TestDatabase:
    """A database and its owner's connection, with short ways to fill and read it."""

    __test__ = False

    def __init__(self, uri: str, functions_uri: str, owner: Connection | None = None) -> None:
        """owner: a connection that is there already."""
        self.uri = uri
        """As its owner: the SQL console."""
        self.functions_uri = functions_uri
        """As the functions reach it: as their login role, perhaps by a pooler."""
        self.owner = owner or self.connect()

    def connect(self, uri: str | None = None) -> Connection:
        return connect(uri or self.uri)

    def close(self) -> None:
        self.owner.close()

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Run a query as the owner."""
        cursor = self.owner.execute(query, values)
        return cursor.fetchall() if cursor.description else []

    def row(self, query: str, *values: Any) -> dict[str, Any]:
        (row,) = self.rows(query, *values)
        return row

    def value(self, query: str, *values: Any) -> Any:
        (value,) = self.row(query, *values).values()
        return value

    @contextmanager
    def acting(self, role: str, claims: dict[str, Any] | None = None) -> Iterator[Connection]:
        """A connection that acts as the functions and PostgREST do: as a role, with a token's claims. Its own,
        not a pooler's: both stay for as long as it lasts."""
        with self.connect(log_in_as("lastcall_functions", self.uri)) as connection:
            connection.execute("select set_config('role', %s, false)", [role])
            if claims is not None:
                connection.execute("select set_config('request.jwt.claims', %s, false)", [json.dumps(claims)])
            yield connection

    def as_user(self, user_id: UUID | str) -> Any:
        return self.acting("authenticated", {"sub": str(user_id), "role": "authenticated"})

    def as_service(self) -> Any:
        return self.acting("service_role", {"role": "service_role"})

    # Rows that tests start from, by plain inserts, which must always work.

    def agency(self, name: str = "Acme") -> UUID:
        agency_id = uuid4()
        self.rows("insert into agencies (id, name) values (%s, %s)", agency_id, name)
        return agency_id

    def user(self, agency_id: UUID | None, role: str = "agency_owner", external_id: str | None = None) -> UUID:
        user_id = uuid4()
        self.rows(
            "insert into users (id, agency_id, role, external_id) values (%s, %s, %s, %s)",
            user_id,
            agency_id,
            role,
            external_id,
        )
        return user_id

    def batch(
        self,
        agency_id: UUID,
        user_id: UUID | None = None,
        *,
        status: str = "processing",
        external_id: str | None = None,
        **columns: Any,
    ) -> UUID:
        """A batch without contacts, whose limits let everything through; columns override."""
        batch_id = uuid4()
        given = {
            "agency_id": agency_id,
            "id": batch_id,
            "user_id": user_id,
            "status": status,
            "external_id": external_id,
            "max_concurrent": None,
            "calls_per_minute": None,
            **columns,
        }
        self.rows(
            f"insert into call_batches ({', '.join(given)}) values ({', '.join(['%s'] * len(given))})",
            *given.values(),
        )
        return batch_id

    def calling(self, agency_id: UUID) -> dict[str, Any]:
        """The rows that a batch of the agency needs: an agent, a campaign, an active number."""
        agent, campaign = uuid4(), uuid4()
        self.rows(
            "insert into agent_mappings (agency_id, id, ultravox_agent_id, ultravox_agent_name)"
            " values (%s, %s, %s, 'Sales Agent')",
            agency_id,
            agent,
            f"agent-{agent}",
        )
        self.rows("insert into campaigns (agency_id, id, name) values (%s, %s, 'Q1 Outreach')", agency_id, campaign)
        self.rows(
            "insert into agency_phone_numbers (agency_id, phone_number, status) values (%s, '+15551234567', 'active')",
            agency_id,
        )
        return {"agent_mapping_id": str(agent), "campaign_id": str(campaign), "from_number": "+15551234567"}

    def contacts(self, batch_id: UUID, **numbers: int) -> None:
        """Add contacts by status, `pending=3, completed=1`, and count them in the batch."""
        for status, number in numbers.items():
            self.rows(
                "insert into campaign_contacts (agency_id, batch_id, phone_number, status)"
                " select b.agency_id, b.id, '+1555' || lpad(i::text, 7, '0'), %s::contact_status"
                "   from call_batches b, generate_series(1, %s) i where b.id = %s",
                status,
                number,
                batch_id,
            )
            counter = "" if status in ("pending", "scheduled") else f", {status} = {status} + {number}"
            self.rows(
                f"update call_batches set total_contacts = total_contacts + {number}{counter} where id = %s",
                batch_id,
            )

    # The steps of a dialer. Calls are given by their ids; the lease of each is the one in the database.

    def in_progress(self, number: int, **columns: Any) -> tuple[UUID, list[int]]:
        """A batch with so many calls in progress, and their ids."""
        agency = self.agency()
        batch = self.batch(agency, agent_mapping_id=self.calling(agency)["agent_mapping_id"], **columns)
        self.contacts(batch, pending=number)
        claimed = self.rows("select call_id from claim_contacts(%s, 60, %s)", number, batch)
        calls = [row["call_id"] for row in claimed]
        self.start_calls(batch, calls)
        return batch, calls

    def named(self, calls: list[int], **fields: Any) -> str:
        """A JSON array that names each of these calls by id and lease, with these fields."""
        rows = self.rows("select id, lease::text from calls where id = any (%s)", calls)
        leases = {row["id"]: row["lease"] for row in rows}
        return json.dumps([{"call_id": call, "lease": leases.get(call), **fields} for call in calls])

    def lease(self, call: int) -> UUID:
        lease: UUID = self.value("select lease from calls where id = %s", call)
        return lease

    def start_calls(self, batch: UUID, calls: list[int], lease: UUID | None = None) -> list[int]:
        """The calls of one claim that passed. lease: the claim's, for calls that may be gone."""
        lease = lease or self.lease(calls[0])
        started: list[int] = self.value("select (start_call(%s, %s, %s)).started", batch, calls, lease)
        return started

    def confirm_calls(self, batch: UUID, calls: list[int], carrier_call_id: str) -> list[int]:
        """The calls that this changed."""
        return self._report("confirm_call", batch, self.named(calls, carrier_call_id=carrier_call_id))

    def finish_calls(self, batch: UUID, calls: list[int], status: str, **result: Any) -> list[int]:
        """The calls that this changed."""
        return self._report("finish_call", batch, self.named(calls, status=status, **result))

    def _report(self, procedure: str, batch: UUID, report: str) -> list[int]:
        rows = self.rows(f"select call_id from {procedure}(%s, %s) where result = 'changed'", batch, report)
        return [row["call_id"] for row in rows]

    # Rows that tests look at.

    def batch_row(self, batch_id: UUID) -> dict[str, Any]:
        return self.row("select * from call_batches where id = %s", batch_id)

    def statuses(self, batch_id: UUID) -> dict[str, int]:
        """How many contacts of the batch have each status."""
        return {
            row["status"]: row["n"]
            for row in self.rows(
                "select status::text, count(*) as n from campaign_contacts where batch_id = %s group by 1", batch_id
            )
        }

    def state(self) -> str:
        """All rows of all tables, to see that nothing changed."""
        tables = self.rows(
            "select oid::regclass::text as name from pg_class"
            " where relkind = 'r' and relnamespace in ('public'::regnamespace, 'private'::regnamespace)"
        )
        return json.dumps(
            {
                table["name"]: self.value(f"select jsonb_agg(to_jsonb(t) order by to_jsonb(t)) from {table['name']} t")
                for table in tables
            }
        )

    def unbalanced(self) -> list[dict[str, Any]]:
        """The faults in the books: counters, and leases against queued contacts."""
        return self.rows("select * from private.check_counters()") + self.rows(
            "select c.batch_id, c.contact_id, 'lease without a queued contact' as counter from calls c"
            " where c.status = 'queued' and not exists (select from campaign_contacts t"
            "   where t.agency_id = c.agency_id and t.batch_id = c.batch_id and t.id = c.contact_id"
            "     and t.status = 'queued')"
        )
