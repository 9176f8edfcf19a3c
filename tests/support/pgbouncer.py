"""A real PgBouncer in transaction mode: Debian's package, as an ordinary user, on a Unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from functions.postgres_server import PostgresServer

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
ROLES = ("lastcall_functions", "authenticator", "postgres")

_CONFIG = """
[databases]
* = host={server} port=5432

[pgbouncer]
pool_mode = transaction
default_pool_size = {pool_size}
unix_socket_dir = {folder}
listen_port = 5432
auth_type = trust
auth_file = {folder}/users.txt
logfile = {folder}/pgbouncer.log
query_wait_timeout = 30
; Cleaning a leased database ends its sessions. After a cut login, the next client waits this long (default: 15 s).
server_login_retry = 1
ignore_startup_parameters = extra_float_digits
"""


class PgBouncer:
    """A transaction pooler in front of a server, as `pool_size` connections of each role to each database."""

    def __init__(self, folder: Path, server: PostgresServer, pool_size: int) -> None:
        self.folder = folder
        self._server = server
        self._pool_size = pool_size

    def uri(self, database: str, role: str = "lastcall_functions") -> str:
        """The URI of a database of the server, by way of the pooler."""
        return f"postgresql://{role}@/{database}?host={quote(str(self.folder), safe='')}&port=5432"

    @contextmanager
    def running(self) -> Iterator[PgBouncer]:
        """Started, until the end of the block."""
        assert PGBOUNCER is not None
        config = self.folder / "pgbouncer.ini"
        config.write_text(
            _CONFIG.format(server=self._server.folder, folder=self.folder, pool_size=self._pool_size).lstrip()
        )
        (self.folder / "users.txt").write_text("".join(f'"{role}" ""\n' for role in ROLES))
        owner = self._server.data.stat()
        for path in (self.folder, *self.folder.iterdir()):
            os.chown(path, owner.st_uid, owner.st_gid)
        with subprocess.Popen([PGBOUNCER, "-q", config], cwd=self.folder, **_as(owner.st_uid)) as process:
            try:
                self._wait(process)
                yield self
            finally:
                process.kill()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        give_up_at = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.uri("postgres", "postgres")).close()
            except psycopg.OperationalError:
                log = self.folder / "pgbouncer.log"
                assert process.poll() is None, log.read_text() if log.exists() else "it ended at once"
                assert time.monotonic() < give_up_at
                time.sleep(0.02)
            else:
                return


def _as(user: int) -> dict[str, Any]:
    """PgBouncer does not run as root: then as the server's user, who alone may use its socket."""
    return {"user": user, "group": user, "extra_groups": []} if os.geteuid() == 0 else {}
