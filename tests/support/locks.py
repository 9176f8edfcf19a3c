"""A batch's row lock, and the service's sessions that wait for a lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from .database import TestDatabase
from .waiting import until


def waiting_for_a_lock(db: TestDatabase, number: int = 1) -> None:
    """Wait until `number` sessions of the service wait for a lock."""
    query = (
        "select count(*) as n from pg_stat_activity"
        " where datname = current_database() and wait_event_type = 'Lock' and application_name = 'lastcall'"
    )
    until(lambda: db.value(query) == number)


@contextmanager
def locked(db: TestDatabase, batch_id: UUID) -> Iterator[None]:
    """The batch's row is held by somebody else."""
    with db.connect() as other, other.transaction():
        other.execute("select from call_batches where id = %s for no key update", [batch_id])
        yield
