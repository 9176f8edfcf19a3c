"""The command `lastcall`: as a process of its own, or within the process of the tests."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2

from functions.cli import main

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


def lastcall_here(
    *arguments: str, folder: Path, settings: dict[str, str], typed: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which saves a second: with the environment, the folder, the arguments and the
    standard streams of a process of its own, none of which is a terminal. `typed` is piped in."""
    streams = [io.TextIOWrapper(io.BytesIO(given), "utf-8") for given in (typed.encode(), b"", b"")]
    stdin, stdout, stderr = streams
    with (
        mock.patch.dict(os.environ, settings, clear=True),
        mock.patch.multiple(sys, argv=["lastcall", *arguments], stdin=stdin, stdout=stdout, stderr=stderr),
        contextlib.chdir(folder),
        warnings.catch_warnings(action="ignore"),  # as Python does outside of tests
    ):
        try:
            status = main([*arguments])
        except SystemExit as ended:  # argparse: help, or options that are wrong
            status = ended.code if isinstance(ended.code, int) else 1
    for stream in (stdout, stderr):
        stream.flush()
    printed, complained = (stream.buffer.getvalue().decode() for stream in (stdout, stderr))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(["lastcall", *arguments], status, printed, complained)


class Service:
    """A running `lastcall serve`."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        assert process.stdout is not None
        self.ready = process.stdout.readline().rstrip("\n")
        assert self.ready.startswith("ready http://"), (self.ready, log.read_text())
        self.url = self.ready.removeprefix("ready ")

    def health(self) -> httpx2.Response:
        """The answer to GET /health, by no proxy."""
        return httpx2.get(f"{self.url}/health", timeout=60, trust_env=False)

    def end(self, signal: int) -> int:
        """Send it a signal; its exit status."""
        self.process.send_signal(signal)
        return self.process.wait(60)

    def log(self) -> list[dict[str, Any]]:
        """The lines of stderr: JSON, and nothing else."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]


@contextmanager
def serve(
    folder: Path,
    settings: dict[str, str] | None = None,
    command: list[str] | None = None,
    user: int | None = None,
    options: tuple[str, ...] = (),
) -> Iterator[Service]:
    """`lastcall serve` in `folder`, on a free port, until the end of the block. A slow machine is given a minute for
    each connection to the database."""
    log = folder / f"serve-{len(list(folder.glob('serve-*')))}.log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [*(command or [LASTCALL]), "serve", *options],
            cwd=folder,
            env=environment(**{"PORT": "0", "LASTCALL_POOL_TIMEOUT_MS": "60000", **(settings or {})}),
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
