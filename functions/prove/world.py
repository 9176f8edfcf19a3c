"""The rows that `lastcall prove` dials: agencies, campaigns, agents, numbers and batches of its own, marked by name."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from ..local import CommandError

NAME = "lastcall prove"
AGENCIES = 2
CANARY_S = 2.5
"""Seconds in which a dialer that is at work would claim a contact: more than two of its turns."""
_GIVE_AT_A_TIME = 10_000

Row = dict[str, Any]

_LIVE = """
select a.name, count(*) as batches
  from call_batches b
  join agencies a on a.id = b.agency_id
 where b.agency_id <> all (%s)
   and (b.status in ('pending', 'scheduled', 'processing') or b.queued + b.in_progress > 0)
 group by a.name
 order by a.name
"""
_WAITING_WEBHOOKS = """
select count(*) as n from webhook_queue where agency_id <> all (%s) and status in ('pending', 'failed')
"""


class Session:
    """A connection as an admin, or as the service."""

    def __init__(self, url: str) -> None:
        """Raises psycopg.Error, and CommandError when the database has no core, or the role may not use it."""
        # There may be a transaction pooler in between: nothing is set or prepared for longer than a transaction.
        self._connection = psycopg.connect(
            url, autocommit=True, row_factory=dict_row, prepare_threshold=None, application_name=NAME
        )
        self._connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # holds and opt-outs need it
        self._lock = threading.Lock()
        self._as_service = False
        try:
            self._choose_role()
        except BaseException:
            self._connection.close()
            raise

    def _choose_role(self) -> None:
        (found,) = self.rows("select to_regclass('public.holds') is not null as core")
        if not found["core"]:
            raise CommandError("the database has no core of this release: run lastcall migrate with its DATABASE_URL")
        (may,) = self.rows(
            "select has_table_privilege('public.agencies', 'insert')"
            "         and has_table_privilege('public.call_batches', 'insert')"
            "         and pg_has_role('lastcall_admin', 'usage') as administer,"
            "       has_table_privilege('public.campaign_contacts', 'update') as update,"
            "       pg_has_role('service_role', 'member') as serve"
        )
        if not may["serve"]:
            raise CommandError("the role of DATABASE_URL is neither the core's owner nor the service: dialers need it")
        self._as_service = not may["administer"]
        self.may_update = bool(may["administer"] and may["update"])

    def rows(self, query: str, *values: Any) -> list[Row]:
        """Run a query in a transaction of its own, also when threads share the session. Raises psycopg.Error."""
        with self._lock, self._connection.transaction():
            if self._as_service:
                self._connection.execute("select set_config('role', 'service_role', true)")
            cursor = self._connection.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def row(self, query: str, *values: Any) -> Row:
        (row,) = self.rows(query, *values)
        return row

    def close(self) -> None:
        self._connection.close()


@dataclass
class Batch:
    """A batch to dial, and what holds reach it by."""

    id: str
    agency: str
    campaign: str
    agent: str
    caller_number: str
    contacts: list[tuple[int, str]]
    """Ids and numbers."""


@dataclass
class Agency:
    """An agency, with two of each of what a hold can name."""

    id: str
    campaigns: list[str]
    agents: list[str]
    caller_numbers: list[str]
    batches: list[Batch] = field(default_factory=list)
    """The batches that may still be dialed. The agency's own thread alone changes the list."""

    def kinds(self) -> Iterator[tuple[str, str, str]]:
        """Each combination of campaign, agent and caller number."""
        for campaign in self.campaigns:
            for agent in self.agents:
                for number in self.caller_numbers:
                    yield campaign, agent, number


class World:
    """The agencies of a run, and their batches."""

    def __init__(self, session: Session, mark: str, contacts: int, max_concurrent: int) -> None:
        """mark: of this run, in the names of its agencies. contacts: of each batch."""
        self.session = session
        self.agencies: list[Agency] = []
        self._mark = mark
        self._contacts = contacts
        self._max_concurrent = max_concurrent

    def refuse_others(self) -> None:
        """Raise CommandError if batches of others are being dialed: the dialers of a run dial whatever there is."""
        own = [UUID(agency.id) for agency in self.agencies]
        webhooks = self.session.row(_WAITING_WEBHOOKS, own)["n"]
        live = [f"{row['batches']} of {row['name']!r}" for row in self.session.rows(_LIVE, own)]
        if live or webhooks:
            found = f"live batches: {', '.join(live[:3]) or 'none'}; webhooks that wait: {webhooks}"
            raise CommandError(
                f"others dial in this database ({found}), and lastcall prove would dial for them at its own carrier."
                f" Use a database in which nothing is dialed. Agencies named '{NAME} ...' were left behind by a killed"
                " run: delete them."
            )

    def refuse_dialers(self, canary_s: float = CANARY_S) -> None:
        """Raise CommandError if a dialer is at work on the database: it would place the calls of this run. A contact
        on the do-not-call list is offered: a dialer claims it, and start_call never lets it through."""
        agency = self.agencies[0]
        batch = self._insert_batch(agency, *next(agency.kinds()))
        self.session.rows(
            "select add_contacts(%s, %s)", UUID(batch), json.dumps([{"phone_number": _fictitious_number(0)}])
        )
        self.session.rows("insert into do_not_call values (%s, %s)", UUID(agency.id), _fictitious_number(0))
        self.session.rows("select start_batch(%s)", batch)
        give_up_at = time.monotonic() + canary_s
        while time.monotonic() < give_up_at:
            (contact,) = self.session.rows(
                "select status from campaign_contacts where agency_id = %s and batch_id = %s",
                UUID(agency.id),
                UUID(batch),
            )
            if contact["status"] != "pending":
                raise CommandError(
                    "a dialer is at work on this database, and would place the calls of this run: stop the dialers,"
                    " and the cron of calls-batch-process"
                )
            time.sleep(0.1)
        self.session.rows("select cancel_batch(%s)", UUID(batch))
        self.session.rows("delete from do_not_call where agency_id = %s", UUID(agency.id))

    def add_agencies(self) -> None:
        """Add the agencies, without batches."""
        for number in range(1, AGENCIES + 1):
            agency = self._new("agencies", {"name": f"{NAME} {self._mark} {number}"})
            campaigns = [self._new("campaigns", {"agency_id": agency, "name": f"{NAME} {place}"}) for place in range(2)]
            agents = [
                # No carrier knows the agent: a real one would place no call of this run.
                self._new(
                    "agent_mappings",
                    {
                        "agency_id": agency,
                        "ultravox_agent_id": f"lastcall-prove-{place}",
                        "ultravox_agent_name": f"{place}",
                    },
                )
                for place in range(2)
            ]
            numbers = [f"+1{900 + number}55501{place:02}" for place in range(2)]
            for caller_number in numbers:
                row = {"agency_id": agency, "phone_number": caller_number, "status": "active"}
                self._new("agency_phone_numbers", row)
            self.agencies.append(Agency(agency, campaigns, agents, numbers))

    def add_batch(self, agency: Agency, kind: tuple[str, str, str], tell: Callable[[Batch], None]) -> Batch:
        """Add a batch of a kind, and let it be dialed. tell: is told of the batch before."""
        campaign, agent, caller_number = kind
        batch = Batch(self._insert_batch(agency, *kind), agency.id, campaign, agent, caller_number, [])
        for first in range(0, self._contacts, _GIVE_AT_A_TIME):
            places = range(first, min(first + _GIVE_AT_A_TIME, self._contacts))
            # Each batch of the agency has the same numbers: an opt-out reaches all of them.
            contacts = [{"phone_number": _fictitious_number(place), "max_attempts": 2} for place in places]
            self.session.rows("select add_contacts(%s, %s)", UUID(batch.id), json.dumps(contacts))
        batch.contacts = [
            (row["id"], row["phone_number"])
            for row in self.session.rows(
                "select id, phone_number from campaign_contacts where agency_id = %s and batch_id = %s order by id",
                UUID(agency.id),
                UUID(batch.id),
            )
        ]
        tell(batch)
        agency.batches.append(batch)
        if batch.contacts:
            self.session.rows("select start_batch(%s)", batch.id)
        return batch

    def _insert_batch(self, agency: Agency, campaign: str, agent: str, caller_number: str) -> str:
        # Not create_batch, whose batches have a rate of 60 calls a minute at most.
        return self._new(
            "call_batches",
            {
                "agency_id": agency.id,
                "name": f"{NAME} {self._mark}",
                "campaign_id": campaign,
                "agent_mapping_id": agent,
                "from_number": caller_number,
                "calls_per_minute": None,
                "max_concurrent": self._max_concurrent,
                "retry_delay_seconds": 1,
            },
        )

    def _new(self, table: str, columns: Row) -> str:
        values = ", ".join(["%s"] * len(columns))
        row = self.session.row(
            f"insert into {table} ({', '.join(columns)}) values ({values}) returning id",  # noqa: S608
            *columns.values(),
        )
        return str(row["id"])

    def open_calls(self) -> int:
        """Calls of the run that are claimed or in progress."""
        ids = [UUID(agency.id) for agency in self.agencies]
        row = self.session.row(
            "select coalesce(sum(queued + in_progress), 0) as n from call_batches where agency_id = any (%s)", ids
        )
        return int(row["n"])

    def statuses(self) -> dict[str, str]:
        """The status of each batch of the run."""
        ids = [UUID(agency.id) for agency in self.agencies]
        rows = self.session.rows("select id::text, status::text from call_batches where agency_id = any (%s)", ids)
        return {row["id"]: row["status"] for row in rows}

    def contents(self) -> Iterator[tuple[str, Row]]:
        """The rows of the run, as the checker reads them."""
        ids = [UUID(agency.id) for agency in self.agencies]
        for row in self.session.rows(
            "select id::text as batch, status::text, total_contacts, queued, in_progress, completed, failed, skipped"
            "  from call_batches where agency_id = any (%s)",
            ids,
        ):
            yield "counters", row
        for row in self.session.rows(
            "select batch_id::text as batch, id as contact, status::text, attempts"
            "  from campaign_contacts where agency_id = any (%s) order by batch_id, id",
            ids,
        ):
            yield "contact", row

    def remove(self) -> None:
        """Delete the rows of the run."""
        ids = [UUID(agency.id) for agency in self.agencies]
        self.session.rows("delete from agencies where id = any (%s)", ids)
        if self.session.may_update:
            self.session.rows("delete from private.contact_admissions where agency_id = any (%s)", ids)


def _fictitious_number(place: int) -> str:
    """A number that the North American plan keeps for fiction: 555-0100 to 555-0199 of each area code."""
    return f"+1{201 + place // 100}55501{place % 100:02}"
