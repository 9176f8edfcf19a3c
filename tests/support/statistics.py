"""The database's counts of rows read and rows updated."""

from __future__ import annotations

from collections import Counter

from .database import Connection, TestDatabase

TABLES = ("campaign_contacts", "calls", "contact_data", "call_batches", "webhook_queue")


def rows_read(db: TestDatabase) -> dict[str, int]:
    """How many rows of each table were read so far, by whatever scan."""
    return {
        row["relname"]: row["n"]
        for row in db.rows(
            "select relname, seq_tup_read + coalesce(idx_tup_fetch, 0) as n from pg_stat_user_tables"
            " where relname = any (%s)",
            list(TABLES),
        )
    }


def flush(connection: Connection) -> None:
    """Add the connection's own reads and updates to the counts."""
    connection.execute("select pg_stat_force_next_flush()")
    connection.execute("select 1")


def updates(db: TestDatabase) -> Counter[str]:
    """How many updates of contacts there were so far, and how many of them heap-only."""
    return Counter(
        db.row("select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'campaign_contacts'")
    )
