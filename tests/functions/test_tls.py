"""DATABASE_URL with sslmode=verify-full, against a PostgreSQL with a certificate, and against impostors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient

from functions._shared.settings import Settings
from functions.migrations import migrate
from functions.postgres_server import PostgresServer

from ..support.certificates import Authority
from ..support.client import Case, serve
from ..support.database import TestDatabase
from ..support.outage import unavailable
from ..support.ports import reserved_port
from ..support.servers import short_lived_folder
from ..support.serving import logged
from ..support.tokens import ISSUER, SECRET
from ..support.waiting import until

# The embedded PostgreSQL is built without TLS.
DEBIANS = Path("/usr/lib/postgresql/15/bin")
pytestmark = [
    pytest.mark.one_postgres,
    pytest.mark.skipif(not DEBIANS.exists(), reason="needs a PostgreSQL with TLS: Debian's package postgresql-15"),
]

HOST = "db.example"
PASSWORD = "no-other-server-knows-it"
ACCESS = "local all all trust\nhost all lastcall_functions 127.0.0.1/32 scram-sha-256\n"


class TlsServer:
    """A migrated server that listens on loopback, with a certificate for HOST."""

    def __init__(self, server: PostgresServer, folder: Path, port: int) -> None:
        self.server = server
        self.folder = folder
        self.port = port
        authority = Authority("ours")
        certificate, key = authority.issue(HOST)
        self.access = self._keep("pg_hba.test.conf", ACCESS.encode())
        self.certificate, self.key = self._keep("server.crt", certificate), self._keep("server.key", key)
        (folder / "ca.crt").write_bytes(authority.certificate)
        (folder / "another-ca.crt").write_bytes(Authority("another").certificate)

    def _keep(self, name: str, content: bytes) -> Path:
        """A file of the server's own."""
        path = self.server.data / name
        path.write_bytes(content)
        path.chmod(0o600)
        owner = self.server.data.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
        return path

    @contextmanager
    def running(self, *, tls: bool = True) -> Iterator[TestDatabase]:
        """Restarted with or without TLS, until the end of the block."""
        options = self.server.options
        files = {"ssl": "on", "ssl_cert_file": str(self.certificate), "ssl_key_file": str(self.key)}
        self.server.options = {
            **options,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "hba_file": str(self.access),
            **(files if tls else {"ssl": "off"}),
        }
        self.server.restart()
        db = TestDatabase(self.server.uri(), self.uri())
        db.rows(f"alter role lastcall_functions password '{PASSWORD}'")
        try:
            yield db
        finally:
            db.close()

    def uri(self, host: str = HOST, ca: str = "ca.crt", password: str = PASSWORD) -> str:
        query = {"hostaddr": "127.0.0.1", "sslmode": "verify-full", "sslrootcert": str(self.folder / ca)}
        return f"postgresql://lastcall_functions:{password}@{host}:{self.port}/postgres?{urlencode(query)}"


@pytest.fixture(scope="module")
def tls_server() -> Iterator[TlsServer]:
    with short_lived_folder() as folder, reserved_port() as port:
        server = PostgresServer(DEBIANS, folder / "postgres", {"fsync": "off"})
        server.start()
        migrate(server.uri())
        yield TlsServer(server, folder, port)
        server.stop()


def of(uri: str) -> Settings:
    return Settings(database_url=uri, jwt_secret=SECRET, jwt_issuer=ISSUER)


def refused(uri: str) -> AbstractContextManager[TestClient]:
    """A service that does not wait long for a connection that it will not get."""
    return serve(of(uri), pool_timeout_s=1.0)


def test_the_server_that_it_should_be_is_served_over_tls(tls_server: TlsServer) -> None:
    with tls_server.running() as db, serve(of(db.functions_uri)) as client:
        assert Case(db).cancel(client).status_code == 200
        tls = db.rows(
            "select s.ssl, a.usename from pg_stat_ssl s join pg_stat_activity a using (pid)"
            " where a.application_name = 'lastcall'"
        )
    assert tls == [{"ssl": True, "usename": "lastcall_functions"}]


@pytest.mark.parametrize(
    ("wrong", "tls", "reason"),
    [
        ({"host": "another.example"}, True, 'server certificate for "db.example" does not match host name'),
        ({"ca": "another-ca.crt"}, True, "certificate verify failed"),
        ({"ca": "none.crt"}, True, "does not exist"),
        ({}, False, "server does not support SSL, but SSL was required"),
        ({"password": "a-guess"}, True, "password authentication failed"),
    ],
    ids=["another host", "another authority", "no authority", "no TLS", "another password"],
)
def test_any_other_is_told_nothing_and_the_log_says_why(
    tls_server: TlsServer, wrong: dict[str, str], tls: bool, reason: str
) -> None:
    with tls_server.running(tls=tls) as db, logged() as log, refused(tls_server.uri(**wrong)) as client:
        case = Case(db)
        before = db.state()
        assert unavailable(case.cancel(client))
        assert unavailable(client.get("/health"))
        assert db.state() == before
        until(lambda: log.lines("no connection to the database"))
        said = log.lines("no connection to the database")
        assert all(reason in line["reason"] and line["level"] == "warning" for line in said)
        assert PASSWORD not in log.text


def test_the_role_cannot_log_in_before_it_has_a_password(tls_server: TlsServer) -> None:
    with tls_server.running() as db, logged() as log, refused(tls_server.uri()) as client:
        db.rows("alter role lastcall_functions password null")
        assert unavailable(client.get("/health"))
        until(lambda: log.lines("no connection to the database"))
        assert "password authentication failed" in log.lines("no connection to the database")[0]["reason"]
