"""The container image, built by a Docker engine and run over a real PostgreSQL.

TEST_PYTHON_IMAGE: the image to build from. Without it there is nothing to build, and the tests are skipped.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import psycopg
import pytest

from functions.migrations import migrate
from functions.postgres_server import PostgresServer

from ..support.client import Case
from ..support.database import TestDatabase
from ..support.locks import locked, waiting_for_a_lock
from ..support.platforms import REPOSITORY
from ..support.servers import new_server, short_lived_folder
from ..support.tokens import ISSUER, SECRET
from ..support.waiting import until

BASE = os.environ.get("TEST_PYTHON_IMAGE")
pytestmark = pytest.mark.skipif(not BASE, reason="TEST_PYTHON_IMAGE names no image to build from")
USER = "65532"


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    tag = f"lastcall:test-{os.getpid()}"
    given = ("--build-arg", f"PYTHON_IMAGE={BASE}", "--file", "functions/platforms/Dockerfile", "--tag", tag)
    docker("build", "--quiet", *given, ".")
    yield tag
    docker("rmi", "--force", tag)


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that comes and goes, and that the container's user may enter."""
    with short_lived_folder() as folder:
        server = new_server(folder)
        server.options = {**server.options, "unix_socket_permissions": "0777"}
        server.start()
        with psycopg.connect(server.uri(), autocommit=True) as connection:
            connection.execute("create database container")
        migrate(server.uri("container"))
        yield server
        server.stop()


@pytest.fixture
def own_db(own_server: PostgresServer) -> Iterator[TestDatabase]:
    db = TestDatabase(own_server.uri("container"), own_server.uri("container", "lastcall_functions"))
    yield db
    assert db.unbalanced() == []
    db.close()


class Container:
    """A running image, and its address."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client = httpx2.Client(base_url=f"http://{docker('port', name, '8787/tcp')}", timeout=60)

    def inspect(self, what: str) -> str:
        return docker("inspect", "--format", f"{{{{{what}}}}}", self.name)


@contextmanager
def running(image: str, server: PostgresServer, *options: str) -> Iterator[Container]:
    """The image, which may write nowhere but into /tmp, with the server's socket."""
    uri = server.uri("container", "lastcall_functions")
    folder = str(server.folder)
    settings = {"DATABASE_URL": uri, "SUPABASE_JWT_SECRET": SECRET, "SUPABASE_JWT_ISSUER": ISSUER}
    given = [argument for name, value in settings.items() for argument in ("--env", f"{name}={value}")]
    name = docker(
        "run", "--detach", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--publish", "127.0.0.1::8787",
        "--volume", f"{folder}:{folder}", *given, *options, image,
    )  # fmt: skip
    try:
        until(lambda: "ready http://0.0.0.0:8787" in docker("logs", name))
        container = Container(name)
        with container.client:
            yield container
    finally:
        docker("rm", "--force", name)


@pytest.fixture
def container(image: str, own_server: PostgresServer) -> Iterator[Container]:
    with running(image, own_server) as container:
        yield container


def test_it_serves_as_nobody_and_cancels(container: Container, own_db: TestDatabase) -> None:
    case = Case(own_db)
    assert case.cancel(container.client).json()["contacts_skipped"] == 3  # type: ignore[arg-type]
    assert docker("exec", container.name, "id", "-u") == USER
    assert docker("exec", container.name, "stat", "--format", "%u", "/proc/1") == USER


def test_it_is_healthy_while_the_database_answers(image: str, own_server: PostgresServer) -> None:
    with running(image, own_server, "--health-interval", "1s", "--health-retries", "1") as container:
        health = ".State.Health.Status"
        until(lambda: container.inspect(health) == "healthy")
        own_server.stop()
        try:
            until(lambda: container.inspect(health) == "unhealthy")
        finally:
            own_server.start()
        until(lambda: container.inspect(health) == "healthy")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT], ids=lambda ending: str(ending.name))
def test_a_signal_reaches_it_and_requests_in_flight_finish(
    container: Container, own_db: TestDatabase, ending: signal.Signals
) -> None:
    case = Case(own_db)
    with ThreadPoolExecutor(1) as threads:
        with locked(own_db, case.batch):
            sent = threads.submit(case.cancel, container.client)  # type: ignore[arg-type]
            waiting_for_a_lock(own_db)
            docker("kill", "--signal", ending.name, container.name)
        assert sent.result().status_code == 200
    assert docker("wait", container.name) == "0"


def test_without_a_database_it_says_what_is_missing(image: str) -> None:
    done = subprocess.run(["docker", "run", "--rm", image], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "DATABASE_URL" in done.stderr
