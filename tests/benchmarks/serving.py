"""How many cancels a second a server serves, and how long each takes: which server `lastcall serve` should be.

The load comes from wrk (Debian's package), which is written in C and takes little of the cores it shares with the
server and PostgreSQL.
"""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from uuid import UUID

import psutil

from ..support.command import environment
from ..support.ports import reserved_port
from ..support.tokens import SECRET, bearer, token
from .batches import load_core
from .lab import Lab, progress
from .report import milliseconds, ratio, table, whole

CONTACTS = 5
CONNECTIONS = (1, 16, 256)
SECONDS = 5.0
MOST_A_SECOND = 3000
"""More cancels than any server here serves: so many batches are made ready for each second."""

# The first is what `lastcall serve` is.
VARIANTS = (
    "uvicorn asyncio h11 1",
    "uvicorn uvloop h11 1",
    "uvicorn uvloop httptools 1",
    "uvicorn uvloop h11 2",
    "granian uvloop own 1",
    "granian uvloop own 2",
)

_WRK = """
local ids, taken = {}, 0
for id in io.lines("IDS") do ids[#ids + 1] = id end
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer TOKEN"
function request()
  taken = taken + 1
  return wrk.format(nil, "/functions/v1/calls-batch-cancel", nil, '{"batch_id": "' .. (ids[taken] or "") .. '"}')
end
function done(summary, latency)
  local errors = summary.errors
  io.stderr:write(string.format('{"requests": %d, "us": %d, "p50": %d, "p99": %d, "refused": %d, "broken": %d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """The figures of a load of cancels."""

    a_second: float
    p50_s: float
    p99_s: float
    cpu_s: float
    """CPU time of the server's processes for each cancel: a busy machine changes this figure least."""


def run(
    lab: Lab,
    runs: int,
    seconds: float = SECONDS,
    variants: Sequence[str] = VARIANTS,
    connections: Sequence[int] = CONNECTIONS,
    most: int = MOST_A_SECOND,
) -> str:
    """The table of all servers at each number of connections, in turns."""
    if shutil.which("wrk") is None:
        return "### Serving\n\nNot measured: wrk is not there (apt-get install wrk).\n"
    found: dict[tuple[str, int], list[Load]] = {(variant, n): [] for n in connections for variant in variants}
    for turn in range(runs):
        for variant, number in found:
            progress(f"serving, {variant}, {number} connections, run {turn + 1}")
            found[variant, number].append(_measure(lab, variant, number, seconds, most))
    rows = []
    for (variant, number), loads in found.items():
        rate = median(load.a_second for load in loads)
        first = median(load.a_second for load in found[variants[0], number])
        rows.append(
            [
                f"{number}: {variant}",
                whole(rate),
                ratio(rate / first),
                milliseconds(median(load.p50_s for load in loads)),
                milliseconds(median(load.p99_s for load in loads)),
                f"{median(load.cpu_s for load in loads) * 1000:.2f}",
            ]
        )
    return table(
        "Serving",
        f"Cancels of batches of {CONTACTS} contacts over HTTP, each of another batch, for {seconds:g} seconds by wrk; "
        f"medians of {runs} runs, in turns. Pool of 10 connections for all workers together, no limit of how many wait "
        "for one. Server, loop, parser and workers; to the first: ratio of the rates; CPU: of the server's processes, "
        "for each cancel.",
        ["connections: server", "cancels/s", "to the first", "p50 ms", "p99 ms", "server CPU ms"],
        rows,
    )


def _measure(lab: Lab, variant: str, connections: int, seconds: float, most: int) -> Load:
    user, batches = _load(lab, round(seconds * most))
    workers = int(variant.split()[-1])
    settings = {
        "DATABASE_URL": lab.service_uri,
        "SUPABASE_JWT_SECRET": SECRET,
        "LASTCALL_POOL_SIZE": str(10 // workers),
        "LASTCALL_POOL_MAX_WAITING": "100000",
        "LASTCALL_POOL_TIMEOUT_MS": "60000",
    }
    with tempfile.TemporaryDirectory(prefix="lastcall-bench-") as folder, serve(variant, settings) as (port, process):
        ids = Path(folder) / "ids"
        ids.write_text("\n".join(map(str, batches)))
        script = Path(folder) / "cancel.lua"
        script.write_text(_WRK.replace("IDS", str(ids)).replace("TOKEN", token(user)))
        _cancel(port, user, batches.pop())  # so that the server has connected
        before = _cpu(process)
        done = subprocess.run(
            ["wrk", "--threads=1", f"--connections={connections}", f"--duration={round(seconds)}s", "--timeout=30s",
             "--latency", f"--script={script}", f"http://127.0.0.1:{port}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        cpu = _cpu(process) - before
    result = json.loads(done.stderr)
    assert (result["refused"], result["broken"]) == (0, 0), done
    # The server also cancelled batches whose replies wrk did not wait for.
    cancelled = lab.owner.execute("select count(*) from call_batches where status = 'cancelled'").fetchone()
    assert cancelled is not None
    assert result["requests"] <= cancelled[0] - 1 <= result["requests"] + connections, (result, cancelled)
    number = result["requests"]
    return Load(number * 1e6 / result["us"], result["p50"] / 1e6, result["p99"] / 1e6, cpu / number)


def _cancel(port: int, user: UUID, batch: UUID) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = bearer(user) | {"Content-Type": "application/json"}
    connection.request("POST", "/functions/v1/calls-batch-cancel", json.dumps({"batch_id": str(batch)}), headers)
    assert connection.getresponse().status == 200
    connection.close()


def _cpu(process: psutil.Process) -> float:
    """Seconds of CPU that the process and its children have had."""
    return sum(
        times.user + times.system
        for times in (each.cpu_times() for each in (process, *process.children(recursive=True)))
    )


def _load(lab: Lab, number: int) -> tuple[UUID, list[UUID]]:
    """An owner, and so many small batches of the agency."""
    (batch,) = load_core(lab, [CONTACTS])
    lab.owner.execute(
        "insert into call_batches (agency_id, id, status, total_contacts)"
        " select %s, gen_random_uuid(), 'processing', %s from generate_series(2, %s)",
        [batch.agency_id, CONTACTS, number],
    )
    lab.owner.execute(
        "insert into campaign_contacts (agency_id, batch_id, phone_number)"
        " select b.agency_id, b.id, '+1555' || lpad(i::text, 7, '0')"
        "   from call_batches b, generate_series(1, %s) i where b.id <> %s",
        [CONTACTS, batch.id],
    )
    lab.settle("campaign_contacts", "call_batches")
    rows = lab.owner.execute("select id from call_batches").fetchall()
    return batch.user_id, [row[0] for row in rows]


@contextmanager
def serve(variant: str, settings: dict[str, str]) -> Iterator[tuple[int, psutil.Process]]:
    """The server, which answers: its port and process."""
    with (
        reserved_port() as port,
        subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.server", *variant.split(), str(port)],
            env=environment(**settings),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        try:
            while not _answers(port):
                assert process.poll() is None, variant
                time.sleep(0.05)
            yield port, psutil.Process(process.pid)
        finally:
            if process.poll() is None:
                # Workers may outlive the one that started them.
                whole = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                process.send_signal(signal.SIGTERM)
                for each in psutil.wait_procs(whole, timeout=10)[1]:
                    each.kill()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
