"""A primary and its standby, by PostgreSQL's own streaming replication."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import closing, suppress
from itertools import count
from urllib.parse import urlencode

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

from functions.migrations import migrate
from functions.postgres_server import PostgresServer

from .dialers import wait_for

# A standby connects again soon after it lost its primary.
_OPTIONS = {"wal_retrieve_retry_interval": "50ms"}


class Node(PostgresServer):
    """A server that can be copied, killed and promoted."""

    def copy(self, primary: PostgresServer, name: str) -> None:
        """Become a standby of the primary, where it is known by this name."""
        self.folder.mkdir(parents=True)
        self._prepare_for_user()
        options = ("--write-recovery-conf", "--checkpoint=fast", "--no-sync")
        primary_uri = f"{primary.uri()}&application_name={name}"
        done = subprocess.run(
            [self.bin_folder / "pg_basebackup", "-D", self.data, "-d", primary_uri, *options],
            capture_output=True,
            text=True,
            cwd=self.folder,
            **self._as_user(),
        )
        assert done.returncode == 0, done.stderr
        self.start()

    @property
    def is_up(self) -> bool:
        return self._using is not None

    def kill(self) -> None:
        """Kill every process of the server at once."""
        assert self._using is not None
        postmaster = psutil.Process(self.postmaster_pid())
        postmaster.suspend()
        processes = [*postmaster.children(recursive=True), postmaster]
        for process in processes:
            process.kill()
        wait_for(lambda: not any(map(_is_alive, processes)), "they are dead")
        self._using.close()
        self._using = None

    def promote(self) -> None:
        """Become a primary."""
        # Not by pg_promote: recovery cancels a query that is in the way of the log it replays.
        done = subprocess.run(
            [self.bin_folder / "pg_ctl", "promote", "--wait", "-D", self.data],
            capture_output=True,
            text=True,
            cwd=self.folder,
            **self._as_user(),
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _is_alive(process: psutil.Process) -> bool:
    """Whether it runs: a dead process may wait for its parent to look."""
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


class Cluster:
    """A primary, and one standby at most. Its database `migrated` is there to be copied."""

    def __init__(self, first: PostgresServer) -> None:
        """first: not started; its folder will hold one folder for each server."""
        self._first = first
        self._numbers = count(1)
        self._dead: list[Node] = []
        self.standby: Node | None = None
        self.primary = self._new_node()
        self.primary.start()
        self.execute("create database migrated")
        migrate(self.primary.uri("migrated"))

    def stop(self) -> None:
        for node in (self.standby, self.primary):
            if node is not None and node.is_up:
                node.kill()

    def uri(self, database: str, user: str) -> str:
        """The libpq URI of a database on whichever server is the primary, for a client that outlives a failover."""
        assert self.standby is not None
        one, other = (conninfo_to_dict(node.uri(database, user)) for node in (self.primary, self.standby))
        hosts = {"host": f"{one['host']},{other['host']}", "port": f"{one['port']},{other['port']}"}
        return f"postgresql://{user}@/{database}?{urlencode({**hosts, 'target_session_attrs': 'read-write'})}"

    def execute(self, query: str) -> None:
        """Run a statement on the primary."""
        with closing(self._connect()) as connection:
            connection.execute(query.encode())

    def is_true(self, condition: str) -> bool:
        """Whether the condition holds on the primary."""
        with closing(self._connect()) as connection:
            return connection.execute(f"select coalesce(({condition}), false)".encode()).fetchone() == (True,)

    def configure(self, setting: str, value: str) -> None:
        """Change a setting of the primary, for new connections."""
        self.execute(f"alter system set {setting} = '{value}'")
        self.execute("select pg_reload_conf()")
        wait_for(lambda: self.is_true(f"current_setting('{setting}') = '{value}'"), f"{setting} = {value}")

    def add_standby(self) -> None:
        """Have a standby, a copy of the primary or the one that is there, and commits that wait for the standby."""
        while self._dead:
            shutil.rmtree(self._dead.pop().folder)
        if self.standby is None:
            self.standby = self._new_node()
            self.standby.copy(self.primary, "standby")
        elif not self.standby.is_up:
            self.standby.start()
        self.configure("synchronous_commit", "on")
        self.configure("synchronous_standby_names", "standby")
        self._wait_for_standby()

    def lose_standby(self) -> None:
        """Kill the standby: it confirms nothing any more."""
        assert self.standby is not None
        self.standby.kill()
        wait_for(lambda: self.is_true("select count(*) = 0 from pg_stat_replication"), "the standby is gone")

    def find_standby(self) -> None:
        """Start the lost standby."""
        assert self.standby is not None
        self.standby.start()
        self._wait_for_standby()

    def fail_over(self) -> None:
        """Kill the primary and promote the standby, which may be lost."""
        assert self.standby is not None
        self.primary.kill()
        if not self.standby.is_up:
            self.standby.start()
        self.standby.promote()
        self._dead.append(self.primary)
        self.primary, self.standby = self.standby, None

    def _new_node(self) -> Node:
        folder = self._first.folder / f"node-{next(self._numbers)}"
        return Node(self._first.bin_folder, folder, {**self._first.options, **_OPTIONS})

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self.primary.uri(), autocommit=True)

    def _wait_for_standby(self) -> None:
        attached = "exists (select from pg_stat_replication where sync_state = 'sync')"
        wait_for(lambda: self.is_true(attached), "the standby is attached")
