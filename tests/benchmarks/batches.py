"""Fresh batches: what every measurement begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from .lab import Connection, Lab

TYPICAL = (Path(__file__).parent / "typical.sql").read_text()


@dataclass(frozen=True)
class Batch:
    agency_id: UUID
    user_id: UUID
    id: UUID


def load_core(lab: Lab, sizes: list[int], others: int = 0) -> list[Batch]:
    """Batches of `sizes` pending contacts of one agency in lastcall's tables, and nothing else but ten
    batches of the agency with `others` contacts in all, uploaded before."""
    lab.owner.execute("truncate public.agencies cascade")
    agency_id, user_id = uuid4(), uuid4()
    lab.owner.execute("insert into agencies (id, name) values (%s, 'Acme')", [agency_id])
    lab.owner.execute("insert into users (id, agency_id, role) values (%s, %s, 'agency_owner')", [user_id, agency_id])
    for _ in range(10 if others else 0):
        add_core_batch(lab.owner, agency_id, others // 10)
    return [Batch(agency_id, user_id, add_core_batch(lab.owner, agency_id, size)) for size in sizes]


def add_core_batch(connection: Connection, agency_id: UUID, size: int) -> UUID:
    """One more batch being dialed, whose limits let everything through."""
    batch_id = uuid4()
    connection.execute(
        "insert into call_batches (agency_id, id, status, total_contacts, max_concurrent, calls_per_minute)"
        " values (%s, %s, 'processing', %s, null, null)",
        [agency_id, batch_id, size],
    )
    with connection.transaction():
        _skip_foreign_keys(connection)
        connection.execute(
            "insert into campaign_contacts (agency_id, batch_id, phone_number)"
            " select %s, %s, '+1555' || lpad(i::text, 7, '0') from generate_series(1, %s) i",
            [agency_id, batch_id, size],
        )
    return batch_id


def load_typical(lab: Lab, sizes: list[int], others: int = 0) -> list[Batch]:
    """The same in the typical tables."""
    lab.owner.execute("truncate typical.agencies cascade")
    agency_id, user_id = uuid4(), uuid4()
    lab.owner.execute("insert into typical.agencies (id, name) values (%s, 'Acme')", [agency_id])
    lab.owner.execute(
        "insert into typical.users (id, agency_id, role) values (%s, %s, 'agency_owner')",
        [user_id, agency_id],
    )
    for _ in range(10 if others else 0):
        _add_typical_batch(lab.owner, agency_id, others // 10)
    return [Batch(agency_id, user_id, _add_typical_batch(lab.owner, agency_id, size)) for size in sizes]


def _add_typical_batch(connection: Connection, agency_id: UUID, size: int) -> UUID:
    batch_id = uuid4()
    connection.execute(
        "insert into typical.call_batches (agency_id, id, status, total_contacts) values (%s, %s, 'processing', %s)",
        [agency_id, batch_id, size],
    )
    with connection.transaction():
        _skip_foreign_keys(connection)
        connection.execute(
            "insert into typical.campaign_contacts (agency_id, batch_id, phone_number, custom_data)"
            ' select %s, %s, \'+1555\' || lpad(i::text, 7, \'0\'), \'{"first_name": "Ada", "plan": "gold"}\''
            "   from generate_series(1, %s) i",
            [agency_id, batch_id, size],
        )
    return batch_id


def _skip_foreign_keys(connection: Connection) -> None:
    """Load without looking up each contact's batch: it only takes time, and leaves the same rows."""
    connection.execute("set local session_replication_role = replica")
