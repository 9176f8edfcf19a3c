"""The command `lastcall` as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LASTCALL = str(Path(sys.executable).parent / "lastcall")


def environment(**settings: str) -> dict[str, str]:
    """Nothing of the tests' own environment that the command would read."""
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **settings}


def lastcall(*arguments: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder` to its end."""
    return subprocess.run(
        [LASTCALL, *arguments],
        cwd=folder,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
    )


class Service:
    """A running `lastcall serve`."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        assert process.stdout is not None
        self.ready = process.stdout.readline().rstrip("\n")
        assert self.ready.startswith("ready http://"), (self.ready, log.read_text())
        self.url = self.ready.removeprefix("ready ")

    def end(self, signal: int) -> int:
        """Send it a signal; its exit status."""
        self.process.send_signal(signal)
        return self.process.wait(60)

    def log(self) -> list[dict[str, Any]]:
        """What it wrote to stderr: JSON lines, and nothing else."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]


@contextmanager
def serve(
    folder: Path,
    settings: dict[str, str] | None = None,
    command: list[str] | None = None,
    user: int | None = None,
) -> Iterator[Service]:
    """`lastcall serve` in `folder`, on a free port, until the end of the block."""
    log = folder / f"serve-{len(list(folder.glob('serve-*')))}.log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [*(command or [LASTCALL]), "serve"],
            cwd=folder,
            env=environment(**{"PORT": "0", **(settings or {})}),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            **_as(user),
        ) as process,
    ):
        try:
            yield Service(process, log)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _as(user: int | None) -> dict[str, Any]:
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}
