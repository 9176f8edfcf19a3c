"""pgqueuer, a Postgres job queue for Python, as far as claiming goes: its own tables and its own statement, run by
psycopg without the rest of its client, which would only slow it down."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import psycopg
from pgqueuer.adapters.persistence.qb import QueryBuilderEnvironment, QueryQueueBuilder

from .lab import Lab

ENTRYPOINT = "dial"


def install(lab: Lab) -> None:
    """Make its tables, if they are not there, for whoever claims."""
    if lab.owner.execute("select to_regclass('public.pgqueuer')").fetchone() == (None,):
        lab.owner.execute(QueryBuilderEnvironment().build_install_query().encode())
        lab.owner.execute("grant all on all tables in schema public to service_role")


def load(lab: Lab, jobs: int) -> None:
    """Fill its queue with so many jobs, and nothing else."""
    lab.owner.execute("truncate pgqueuer")
    lab.owner.execute(
        "insert into pgqueuer (priority, status, entrypoint, payload)"
        " select 0, 'queued', %s, convert_to('+1555' || lpad(i::text, 7, '0'), 'UTF8') from generate_series(1, %s) i",
        [ENTRYPOINT, jobs],
    )


class Rival:
    """One of its workers."""

    def __init__(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        self._cursor = psycopg.RawCursor(connection)
        self._queries = QueryQueueBuilder()
        self._worker = uuid4()

    def claim(self, jobs: int) -> list[tuple[object, ...]]:
        """Take so many jobs."""
        query = self._queries.build_dequeue_query(
            batch_size=jobs,
            entrypoints=[ENTRYPOINT],  # type: ignore[list-item]  # a NewType of str
            concurrency_limits=[0],
            queue_manager_id=self._worker,  # type: ignore[arg-type]  # a NewType of UUID
            global_concurrency_limit=None,
            heartbeat_timeout=timedelta(seconds=60),
        )
        return self._cursor.execute(query.sql.encode(), query.args).fetchall()
