"""How soon a cancel is answered while everything else is stuck, and a request after it has passed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from uuid import UUID, uuid4

import httpx2

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.proxy import proxy
from ..support.serving import serving
from ..support.tokens import ISSUER, SECRET, bearer
from .lab import Lab, progress
from .report import milliseconds, table

POOL_SIZE = 10
CLIENTS = 10 * POOL_SIZE
CONTACTS = 300


def run(lab: Lab, runs: int) -> str:
    """The table: so many runs of each moment."""
    times: dict[str, list[float]] = {}

    def timed(moment: str, request: Callable[[], httpx2.Response]) -> None:
        started = time.perf_counter()
        status = request().status_code
        if status != 200:
            raise RuntimeError(f"{moment}: {status}")
        times.setdefault(moment, []).append(time.perf_counter() - started)

    with (
        tempfile.TemporaryDirectory(prefix="lastcall-overload-") as folder,
        proxy(Path(folder), lab.service_uri) as way,
    ):
        settings = Settings(database_url=way.uri, jwt_secret=SECRET, jwt_issuer=ISSUER, pool_size=POOL_SIZE)
        with serving(create_app(settings)) as (host, port), _client(lab, f"http://{host}:{port}") as (client, batch):
            for turn in range(runs):
                progress(f"overload, run {turn + 1}")
                quiet, stuck = batch(), batch()
                timed("a cancel, when nothing else goes on", partial(_cancel, client, quiet))
                with _stuck(lab, client, settings.pool_size - settings.pool_reserved):
                    timed(f"a cancel, while {CLIENTS} clients are stuck", partial(_cancel, client, stuck))
                timed("a list, after they got through", partial(_list, client))
                way.cut()
                timed("a list, after every connection was cut", partial(_list, client))
    rows = [
        [moment, str(len(seconds)), milliseconds(median(seconds)), milliseconds(max(seconds))]
        for moment, seconds in times.items()
    ]
    return table(
        "Overload",
        f"{CLIENTS} clients list batches over HTTP while a lock lets no list through; the service has {POOL_SIZE} "
        f"connections, of which {settings.pool_reserved} are left to cancel, stop and pause. In ms, from request to "
        f"reply; a cancel is of {CONTACTS} contacts.",
        ["request", "runs", "median", "worst"],
        rows,
    )


@contextmanager
def _client(lab: Lab, url: str) -> Iterator[tuple[httpx2.Client, Callable[[], UUID]]]:
    """An owner of an agency, and how to make a batch of it."""
    agency, owner = uuid4(), uuid4()
    lab.owner.execute("insert into agencies (id, name) values (%s, 'Overload')", [agency])
    lab.owner.execute("insert into users (id, agency_id, role) values (%s, %s, 'agency_owner')", [owner, agency])

    def batch() -> UUID:
        made = uuid4()
        lab.owner.execute(
            "insert into call_batches (agency_id, id, user_id, status, total_contacts)"
            " values (%s, %s, %s, 'processing', %s)",
            [agency, made, owner, CONTACTS],
        )
        lab.owner.execute(
            "insert into campaign_contacts (agency_id, batch_id, phone_number)"
            " select %s, %s, '+1555' || lpad(i::text, 7, '0') from generate_series(1, %s) i",
            [agency, made, CONTACTS],
        )
        return made

    limits = httpx2.Limits(max_connections=2 * CLIENTS)
    with httpx2.Client(base_url=url, headers=bearer(owner), timeout=60, limits=limits) as client:
        batch()  # a list of nothing would wait for nothing
        yield client, batch


@contextmanager
def _stuck(lab: Lab, client: httpx2.Client, connections: int) -> Iterator[None]:
    """Many lists of batches wait for a lock, and hold every connection of this number."""
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'lastcall'"
    with ThreadPoolExecutor(CLIENTS) as threads:
        with lab.connect() as other, other.transaction():
            other.execute("lock table campaigns in access exclusive mode")
            lists = [threads.submit(_list, client) for _ in range(CLIENTS)]
            while lab.owner.execute(waiting.encode()).fetchone() != (connections,):
                time.sleep(0.01)
            yield
        for answer in lists:
            answer.result()


def _list(client: httpx2.Client) -> httpx2.Response:
    return client.get("/functions/v1/calls-batch-list")


def _cancel(client: httpx2.Client, batch: UUID) -> httpx2.Response:
    return client.post("/functions/v1/calls-batch-cancel", json={"batch_id": str(batch)})
