"""How soon an agency's cancel is answered while another agency makes much of the same service."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from uuid import UUID, uuid4

import httpx2

from ..support.tokens import SECRET, bearer, token
from .batches import add_core_batch
from .lab import Lab, progress
from .report import milliseconds, ratio, table, whole
from .serving import VARIANTS, serve

CONTACTS = 300
STOPPED = 400_000
"""Contacts of the batch that the other agency stops again and again."""
CLIENTS = 120
CANCELS = 20
"""Cancels in each run."""
_PAUSE_S = 0.05
_SETTLE_S = 1.0

_WRK = """
local requests, sent = {}, 0
for line in io.lines("REQUESTS") do requests[#requests + 1] = line end
function request()
  sent = sent + 1
  local token, path, body = requests[sent % #requests + 1]:match("^(%S+) (%S+) (.*)$")
  return wrk.format("POST", path, {["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. token}, body)
end
"""


@dataclass(frozen=True)
class Agency:
    id: UUID
    users: list[UUID]


def run(lab: Lab, runs: int, stopped: int = STOPPED, cancels: int = CANCELS) -> str:
    """The table of the cancel's times in each situation."""
    if shutil.which("wrk") is None:
        return "### Neighbours\n\nNot measured: wrk is not there (apt-get install wrk).\n"
    lab.owner.execute("truncate public.agencies cascade")
    mine, other = _agency(lab, 1), _agency(lab, 4)
    settled = add_core_batch(lab.owner, other.id, stopped)
    lab.owner.execute("update call_batches set user_id = %s where id = %s", [other.users[0], settled])
    held = [add_core_batch(lab.owner, other.id, 10) for _ in range(20)]
    lab.owner.execute("select stop_batch(%s::text)", [settled])
    lab.settle("campaign_contacts", "call_batches")

    stop = ("/api/call/stop-calling", f'{{"batchId": "{settled}", "userId": "{other.users[0]}"}}')
    cancel = [("/functions/v1/calls-batch-cancel", f'{{"batch_id": "{batch}"}}') for batch in held]
    situations: dict[str, list[tuple[UUID, str, str]]] = {
        "nothing else goes on": [],
        f"{CLIENTS} clients of one user stop a stopped batch of {whole(stopped)}": [(other.users[0], *stop)],
        f"{CLIENTS} clients of one user cancel a held batch": [(other.users[0], *cancel[0])],
        f"{CLIENTS} clients of {len(other.users)} users cancel {len(held)} held batches": [
            (other.users[i % len(other.users)], *request) for i, request in enumerate(cancel)
        ],
    }
    times: dict[str, list[float]] = {name: [] for name in situations}
    refused = dict.fromkeys(situations, 0)
    settings = {"DATABASE_URL": lab.service_uri, "SUPABASE_JWT_SECRET": SECRET}
    for turn in range(runs):
        for name, requests in situations.items():
            progress(f"neighbours, {name}, run {turn + 1}")
            with (
                serve(VARIANTS[0], settings) as (port, _),
                httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=bearer(mine.users[0]), timeout=90) as client,
                _held(lab, held),
                _crowd(port, requests),
            ):
                for _ in range(cancels):
                    batch = add_core_batch(lab.owner, mine.id, CONTACTS)
                    started = time.perf_counter()
                    answer = client.post("/functions/v1/calls-batch-cancel", json={"batch_id": str(batch)})
                    times[name].append(time.perf_counter() - started)
                    refused[name] += answer.status_code != 200
                    time.sleep(_PAUSE_S)
    quiet = median(next(iter(times.values())))
    rows = [
        [name, str(len(found)), milliseconds(median(found)), milliseconds(max(found)), ratio(median(found) / quiet),
         str(refused[name])]
        for name, found in times.items()
    ]  # fmt: skip
    return table(
        "Neighbours",
        f"An agency cancels batches of {CONTACTS} contacts over HTTP, one after the other, while {CLIENTS} connections "
        "of another agency ask the same service without a pause (wrk). In ms, from request to reply.",
        ["while", "cancels", "median", "worst", "to quiet", "refused"],
        rows,
    )


def _agency(lab: Lab, users: int) -> Agency:
    agency = Agency(uuid4(), [uuid4() for _ in range(users)])
    lab.owner.execute("insert into agencies (id, name) values (%s, 'Neighbour')", [agency.id])
    for user in agency.users:
        lab.owner.execute("insert into users (id, agency_id, role) values (%s, %s, 'agency_owner')", [user, agency.id])
    return agency


@contextmanager
def _held(lab: Lab, batches: Sequence[UUID]) -> Iterator[None]:
    """Whoever would change one of the batches waits."""
    with lab.connect() as other, other.transaction():
        other.execute("select from call_batches where id = any (%s) for no key update", [list(batches)])
        yield


@contextmanager
def _crowd(port: int, requests: Sequence[tuple[UUID, str, str]]) -> Iterator[None]:
    """Clients that send these requests, of a user each, again and again."""
    if not requests:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lastcall-bench-") as folder:
        lines = Path(folder) / "requests"
        lines.write_text("\n".join(f"{token(user)} {path} {body}" for user, path, body in requests))
        script = Path(folder) / "crowd.lua"
        script.write_text(_WRK.replace("REQUESTS", str(lines)))
        with subprocess.Popen(
            ["wrk", "--threads=1", f"--connections={CLIENTS}", "--duration=3600s", "--timeout=90s",
             f"--script={script}", f"http://127.0.0.1:{port}"],
            stdout=subprocess.DEVNULL,
        ) as crowd:  # fmt: skip
            try:
                time.sleep(_SETTLE_S)
                yield
            finally:
                crowd.kill()
