"""How long a process takes from its start to its first reply, and what with."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from urllib.parse import urlsplit

import psutil
import psycopg

from ..support.command import LASTCALL, environment
from ..support.tokens import SECRET, bearer
from .batches import load_core
from .lab import Lab, progress
from .report import milliseconds, table

CONTACTS = 342
IMPORTS_SHOWN = 12
STATEMENTS = (
    "import functions.app",
    "from functions.app import app",  # with its settings
    "import functions.app, functions.server",
    "import functions.platforms.aws_lambda",
)


@dataclass(frozen=True)
class Start:
    """Seconds from the start of a process until it was ready and had given its first reply; from there to its second
    one; and of CPU until it was ready."""

    ready: float
    first: float
    second: float
    cpu: float


@dataclass(frozen=True)
class Statement:
    """Seconds of a Python that runs a statement, and of CPU."""

    seconds: float
    cpu: float


def run(lab: Lab, runs: int) -> str:
    """The table of a start, and that of what it loads."""
    health, cancel, connects = [], [], []
    python: dict[str, list[Statement]] = {statement: [] for statement in ("pass", *STATEMENTS)}
    for turn in range(runs):
        progress(f"cold start, run {turn + 1}")
        health.append(_start(lab, "health"))
        cancel.append(_start(lab, "cancel"))
        connects.append(_connect(lab))
        for statement, found in python.items():
            found.append(_python(lab, statement))

    def ms(seconds: Iterable[float]) -> str:
        return milliseconds(median(seconds))

    rows = [
        *(
            [
                "the interpreter alone" if statement == "pass" else f"and `{statement}`",
                ms(each.seconds for each in found),
                ms(each.cpu for each in found),
            ]
            for statement, found in python.items()
        ),
        ["`lastcall serve`: start to ready", ms(s.ready for s in health + cancel), ms(s.cpu for s in health + cancel)],
        ["start to the first reply, GET /health", ms(s.first for s in health), ""],
        [f"start to the first reply, a cancel of {CONTACTS} contacts", ms(s.first for s in cancel), ""],
        ["of which the cancel, from request to reply", ms(s.first - s.ready for s in cancel), ""],
        ["of which a database connection", ms(connects), ""],
        ["a second cancel", ms(s.second for s in cancel), ""],
    ]
    started = table(
        "Cold start",
        f"A process, from its start to its first reply; medians of {runs} runs. Files are in the page cache and "
        "modules compiled.",
        ["what", "ms", "CPU ms"],
        rows,
    )
    return f"{started}\n{_imports(lab)}"


def _settings(lab: Lab) -> dict[str, str]:
    return environment(DATABASE_URL=lab.service_uri, SUPABASE_JWT_SECRET=SECRET, PORT="0")


def _start(lab: Lab, what: str) -> Start:
    first, second = load_core(lab, [CONTACTS, CONTACTS])
    headers = bearer(first.user_id) | {"Content-Type": "application/json"}
    lab.settle("campaign_contacts", "call_batches")
    began = time.perf_counter()
    with _serving(lab) as (process, connection):
        ready = time.perf_counter()
        cpu = process.cpu_times()

        def ask(batch: object) -> None:
            if what == "health":
                connection.request("GET", "/health")
            else:
                connection.request("POST", "/calls-batch-cancel", json.dumps({"batch_id": str(batch)}), headers)
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (200, True)

        ask(first.id)
        replied = time.perf_counter()
        ask(second.id)
        return Start(ready - began, replied - began, time.perf_counter() - replied, cpu.user + cpu.system)


@contextmanager
def _serving(lab: Lab) -> Iterator[tuple[psutil.Process, http.client.HTTPConnection]]:
    with subprocess.Popen(
        [LASTCALL, "serve"], env=_settings(lab), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = urlsplit(process.stdout.readline().removeprefix("ready ").strip())
            connection = http.client.HTTPConnection(address.hostname or "", address.port)
            yield psutil.Process(process.pid), connection
            connection.close()
        finally:
            process.terminate()


def _python(lab: Lab, statement: str) -> Statement:
    before, began = getrusage(RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], env=_settings(lab), check=True)
    seconds, after = time.perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    return Statement(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _connect(lab: Lab) -> float:
    began = time.perf_counter()
    psycopg.connect(lab.service_uri).close()
    return time.perf_counter() - began


def _imports(lab: Lab) -> str:
    """The packages that `lastcall serve` loads: the time in the modules of each, by Python's -X importtime."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import functions.app, functions.server"],
        env=_settings(lab),
        capture_output=True,
        text=True,
        check=True,
    )
    times: Counter[str] = Counter()
    for line in done.stderr.splitlines():
        if found := re.match(r"import time:\s+(\d+) \|\s+\d+ \| +([^.\s]+)", line):
            times[found[2]] += int(found[1])
    rows = [[name, milliseconds(micro / 1e6)] for name, micro in times.most_common(IMPORTS_SHOWN)]
    rows.append(["all", milliseconds(times.total() / 1e6)])
    return table(
        "Packages that a start loads",
        "Time in a package's own modules, one run under -X importtime, which slows it down.",
        ["package", "ms"],
        rows,
    )
