"""The dialer as a process of its own, which a test can stop and kill."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .command import LASTCALL, environment
from .database import TestDatabase


def process_settings(db: TestDatabase, carrier_url: str, **settings: str) -> dict[str, str]:
    return {"DATABASE_URL": db.functions_uri, "LASTCALL_CARRIER": "simulator", "CARRIER_URL": carrier_url, **settings}


@contextmanager
def looping(folder: Path, settings: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`lastcall process --loop`, ready."""
    with (
        (folder / "process.log").open("a") as log,
        subprocess.Popen(
            [LASTCALL, "process", "--loop"],
            cwd=folder,
            env=environment(**settings),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", (folder / "process.log").read_text()
            yield process
        finally:
            process.kill()
