"""The child processes of `lastcall demo` and `lastcall prove`: started, awaited until they are ready, and ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from .local import CommandError

_READY_WITHIN_S = 60.0
_END_WITHIN_S = 10.0


def end_with_stdin() -> None:
    """End this process by SIGTERM when its stdin ends, hence with its parent, however the parent ends: a kill -9 leaves
    nothing behind."""

    def watch() -> None:
        # Not sys.stdin: its lock would be held, by a thread that never returns, when the interpreter ends.
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class Process:
    """A child process, `python -m functions.<package> <kind>`, whose stderr goes into a log file."""

    def __init__(self, package: str, kind: str, environment: Mapping[str, str], log: Path) -> None:
        """Start the process. package: demo or prove. kind: as the package's __main__.py names it. environment: the
        settings that the process gets, and no others of lastcall's."""
        self.package = package
        self.kind = kind
        self.log = log
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SUPABASE_", "LASTCALL_", "CARRIER_", "ULTRAVOX_"))
            and name not in ("DATABASE_URL", "HOST", "PORT")
        }
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                # -P: not from whatever folder `functions` there is where the demo is run.
                [sys.executable, "-P", "-m", f"functions.{package}", kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**inherited, **environment},
                # Ctrl-C at a terminal goes to its whole process group: the parent ends this one itself.
                process_group=0,
            )

    def ready(self) -> str:
        """Wait for its line `ready [URL]`; returns the URL. Raises CommandError (it ended, or took
        longer than a minute)."""
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], _READY_WITHIN_S)[0]:
            raise self._error("is not ready")
        word, _, url = stdout.readline().decode().strip().partition(" ")
        if word != "ready":
            raise self._error("did not start")
        return url

    def check(self) -> None:
        """Raise CommandError if it has ended by itself."""
        if self._process.poll() is not None:
            raise self._error("has ended")

    def wait(self) -> None:
        """Wait until it ends, which by itself it should not: raises CommandError."""
        self._process.wait()
        self.check()

    def send_signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self._process.send_signal(number)

    def lines(self) -> Iterator[str]:
        """The lines that the process prints after `ready`, until it ends."""
        stdout = self._process.stdout
        assert stdout is not None
        for line in stdout:
            yield line.decode().rstrip("\n")

    def end(self) -> None:
        """End it, and wait until it is gone. A process that stands still is waked to end."""
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _error(self, what: str) -> CommandError:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
        return CommandError(f"the {self.kind} of `lastcall {self.package}` {what}; from {self.log}:\n{tail}")
