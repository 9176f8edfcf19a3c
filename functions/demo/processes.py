"""The demo's own processes: started, waited for until they are ready, and ended."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ..local import CommandError

_READY_WITHIN_S = 60.0
_END_WITHIN_S = 10.0


class Process:
    """A process of the demo (functions/demo/__main__.py), whose stderr goes into a log file."""

    def __init__(self, kind: str, environment: Mapping[str, str], log: Path) -> None:
        """Start it. kind: serve, carrier or dialer. environment: settings that it gets, and no others
        of lastcall's."""
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
                [sys.executable, "-P", "-m", "functions.demo", kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**inherited, **environment},
                # Ctrl-C at a terminal goes to its whole process group: the demo ends this one itself.
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

    def end(self) -> None:
        """End it, and wait until it is gone."""
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
        return CommandError(f"the demo's {self.kind} {what}; from {self.log}:\n{tail}")
