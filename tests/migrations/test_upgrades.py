"""A database of an older release, with dialing going on, is brought to this one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from functions import migrations
from functions.migrations import MIGRATIONS, migrate
from functions.postgres_server import PostgresServer

from ..support.database import TestDatabase, schema
from ..support.dialers import Dialer, wait_for

RELEASES = ["20261122025022_core"]
"""The last migration of each release there was."""


def stop(dialers: list[Dialer]) -> None:
    for dialer in dialers:
        dialer.enough.set()
    for dialer in dialers:
        dialer.join()


@pytest.fixture
def older(
    request: pytest.FixtureRequest, server: PostgresServer, empty_database: str, tmp_path: Path
) -> Iterator[TestDatabase]:
    """A database of an older release."""
    with pytest.MonkeyPatch.context() as patch:
        for path in MIGRATIONS.glob("*.sql"):
            if path.stem <= request.param:
                shutil.copy(path, tmp_path)
        patch.setattr(migrations, "MIGRATIONS", tmp_path)
        migrate(server.uri(empty_database))
    database = TestDatabase(server.uri(empty_database), server.uri(empty_database, "lastcall_functions"))
    yield database
    database.close()


@pytest.mark.parametrize("older", RELEASES, indirect=True)
@pytest.mark.own_database
def test_dialing_goes_on_while_a_database_of_an_older_release_is_migrated(
    server: PostgresServer, older: TestDatabase, template: str
) -> None:
    agency = older.agency()
    batch, other = older.batch(agency), older.batch(agency)
    for dialed in (batch, other):
        older.contacts(dialed, pending=20_000)
    dialers = [Dialer(older, seed) for seed in range(4)]
    try:
        for dialer in dialers:
            dialer.start()
        wait_for(lambda: all(dialer.rounds for dialer in dialers), "dialing before")
        assert migrate(older.uri) == [path.stem for path in sorted(MIGRATIONS.glob("*.sql")) if path.stem > RELEASES[0]]
        rounds = [dialer.rounds for dialer in dialers]
        wait_for(lambda: all(d.rounds > n for d, n in zip(dialers, rounds, strict=True)), "dialing after")
        older.rows("select cancel_batch(%s)", batch)
        passed = older.value("select count(*) from calls where batch_id = %s", batch)
    finally:
        stop(dialers)
    assert [dialer.error for dialer in dialers] == [None] * 4
    assert older.value("select count(*) from calls where batch_id = %s", batch) == passed
    assert older.unbalanced() == []
    assert schema(server, older.value("select current_database()")) == schema(server, template)


@pytest.mark.own_database
def test_a_migration_in_whose_way_somebody_is_lets_the_dialers_pass_and_is_tried_again(
    db: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=20_000)
    for path in MIGRATIONS.glob("*.sql"):
        shutil.copy(path, tmp_path)
    (tmp_path / "29991231235959_more.sql").write_text(
        f"{migrations._HEADER}alter table public.call_batches add column more integer;"
    )
    monkeypatch.setattr(migrations, "MIGRATIONS", tmp_path)
    dialer = Dialer(db, 0)
    with db.connect() as reader, ThreadPoolExecutor(1) as pool:
        reader.execute("begin")
        reader.execute("select from call_batches").fetchall()
        migrating = pool.submit(migrate, db.uri)
        waits = (
            "select exists (select from pg_locks where mode = 'AccessExclusiveLock' and not granted"
            " and database = (select oid from pg_database where datname = current_database()))"
        )
        wait_for(lambda: db.value(waits), "the migration waits for the reader")
        dialer.start()
        try:
            wait_for(lambda: dialer.rounds > 3, "the migration has given way")
            assert not migrating.done()
            reader.execute("commit")
            assert migrating.result() == ["29991231235959_more"]
        finally:
            stop([dialer])
    assert dialer.error is None
    assert db.value("select count(*) from information_schema.columns where column_name = 'more'") == 1


@pytest.mark.own_database
def test_a_migration_that_never_gets_its_lock_says_so_and_leaves_nothing(
    db: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "_LOCK_TRIES", 2)
    monkeypatch.setattr(migrations, "_LET_OTHERS_PASS_S", 0)
    for path in MIGRATIONS.glob("*.sql"):
        shutil.copy(path, tmp_path)
    (tmp_path / "29991231235959_more.sql").write_text(
        f"{migrations._HEADER}create table public.more ();\nalter table public.call_batches add column more integer;"
    )
    monkeypatch.setattr(migrations, "MIGRATIONS", tmp_path)
    with db.connect() as reader:
        reader.execute("begin")
        reader.execute("select from call_batches").fetchall()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            migrate(db.uri)
    assert db.value("select to_regclass('public.more')") is None
    assert migrate(db.uri) == ["29991231235959_more"]
