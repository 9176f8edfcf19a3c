"""Metrics for Prometheus, at an address of their own. Each process has its own and is scraped by itself, so that no
number mixes those of several. No label holds an id, a number or a text that somebody sent."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from .._shared.auth import service_caller
from .._shared.database import Database
from .._shared.log import logger
from .._shared.settings import Settings, SettingsError
from .._shared.telemetry import CARRIER_REQUESTS, Operation

STATS_KEPT_S = 5.0
"""Cache lifetime of `service_stats`, in seconds."""
STATS_TIMEOUT_S = 2.0
"""Seconds after which the database is given up."""
_LAG_EVERY_S = 0.5
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

STATS = {
    "batches": ("lastcall_batches", "status", "Batches that are not over."),
    "batches_ended": ("lastcall_batches_ended", "status", "Batches that ended in the last 24 hours."),
    "contacts": ("lastcall_contacts", "status", "Contacts of batches that are not over; pending and scheduled as one."),
    "open_calls": ("lastcall_open_calls", "status", "Leases (queued), calls in progress and unknown ones."),
    "unknown_calls": (
        "lastcall_unknown_calls",
        "age",
        "Calls of which nobody can tell whether the carrier has them, by how long ago they were started.",
    ),
    "oldest_call_seconds": ("lastcall_oldest_call_seconds", "status", "Seconds since the oldest open call started."),
    "webhooks": ("lastcall_webhooks_waiting", "status", "Webhooks not applied yet, counted to 10,000, and dead ones."),
    "oldest_webhook_seconds": ("lastcall_oldest_webhook_seconds", "status", "Seconds since the oldest of these came."),
    "calls_started_after_end": (
        "lastcall_calls_started_after_end",
        "after",
        "Must be 0. Calls that started after the cancel or stop of their batch: among the newest 200 calls of each of "
        "the 100 batches cancelled last, and of the 100 stopped last that still are, in 24 hours.",
    ),
    "unbalanced_batches": (
        "lastcall_unbalanced_batches",
        "",
        "Must be 0. Batches not over, ended in the last 24 hours or with open calls, whose counters cannot be right.",
    ),
    "synchronous_standbys": (
        "lastcall_synchronous_standbys",
        "state",
        "Synchronous standbys that each commit waits for (required) and that are there (attached). Required 0: a "
        "failover loses the last answers.",
    ),
}
"""The figures of public.service_stats: name of the metric, its label, its help."""

_POOL = {
    "pool_size": ("lastcall_pool_connections", "Connections to the database."),
    "pool_available": ("lastcall_pool_idle", "Open connections that no request uses."),
    "pool_max": ("lastcall_pool_max", "Most connections to the database (LASTCALL_POOL_SIZE)."),
    "requests_waiting": ("lastcall_pool_waiting", "Requests that wait for a connection now."),
}
_POOL_ERRORS = {
    "requests_errors": ("lastcall_pool_refused", "Waits for a connection that ended without one."),
    "connections_errors": ("lastcall_pool_connect_errors", "Failed attempts to connect to the database."),
}


class Metrics:
    """Counts what it is told, in a registry of its own."""

    def __init__(self, host: str, ports: range) -> None:
        self._host = host
        self._ports = ports
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "lastcall_requests",
            "Requests by function (none: no function at that path), method, and status (none: the client left).",
            ["function", "method", "status"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "lastcall_request_seconds",
            "Seconds until the reply was out, body included.",
            ["function"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._requests_going_on = Gauge("lastcall_requests_going_on", "Requests being answered.", registry=registry)
        self._refusals = Counter(
            "lastcall_refusals",
            "Requests answered with an error, by its code; bodies too large or not to be read are body_too_large and "
            "invalid_body.",
            ["code"],
            registry=registry,
        )
        self._procedure_seconds = Histogram(
            "lastcall_procedure_seconds",
            "Seconds of a call of a procedure, the wait for a connection included, by its outcome: ok, refused, retry "
            "(a deadlock: tried once more), unavailable, error, abandoned (ended from outside).",
            ["procedure", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._wait_seconds = Histogram(
            "lastcall_connection_wait_seconds",
            "Seconds until there was a connection to the database, or none to be had.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._jwks_fetches = Counter(
            "lastcall_jwks_fetches", "Fetches of the keys that verify tokens.", ["outcome"], registry=registry
        )
        self._claims = Counter("lastcall_claims", "Claims of contacts: some, or empty.", ["outcome"], registry=registry)
        self._claimed = Counter("lastcall_contacts_claimed", "Contacts claimed.", registry=registry)
        self._started = Counter("lastcall_calls_started", "Calls that start_call let through.", registry=registry)
        self._carrier_seconds = Histogram(
            "lastcall_carrier_seconds",
            "Seconds of a request to the carrier (place: a call; find: what became of one; withdraw: one out of its "
            "queue; hang_up: one, whatever it does), by its outcome: taken, ended, missing; refused, unavailable, "
            "unknown: nobody can tell.",
            ["request", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._carrier_going_on = Gauge(
            "lastcall_carrier_requests_going_on", "Requests to the carrier under way.", registry=registry
        )
        self._holds = Counter(
            "lastcall_carrier_holds", "Times that a carrier that takes no calls was left alone.", registry=registry
        )
        self._results = Counter(
            "lastcall_results",
            "Results that this dialer recorded: confirmed, completed, failed, unknown, missing.",
            ["status"],
            registry=registry,
        )
        self._webhooks = Counter(
            "lastcall_webhooks", "Webhooks that this dialer applied or ignored, or could not apply.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self._lag_seconds = Histogram(
            "lastcall_loop_lag_seconds",
            "Seconds by which the process is late with what is due.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._counters = {
            "jwks_fetch": self._jwks_fetches,
            "claim": self._claims,
            "claimed": self._claimed,
            "started": self._started,
            "hold": self._holds,
            "result": self._results,
            "webhook": self._webhooks,
        }
        ProcessCollector(registry=registry)

    # The Listener protocol.

    def begin(self, operation: Operation) -> None:
        going_on = self._going_on(operation)
        if going_on is not None:
            going_on.inc()

    def end(self, operation: Operation) -> None:
        going_on = self._going_on(operation)
        if going_on is not None:
            going_on.dec()
        seconds = operation.seconds or 0.0
        match operation.kind:
            case "request":
                status = operation.details["status"]
                self._requests.labels(operation.name, operation.details["method"], status or "none").inc()
                self._request_seconds.labels(operation.name).observe(seconds)
                if operation.outcome not in ("ok", "abandoned"):
                    self._refusals.labels(operation.outcome).inc()
            case "procedure":
                self._procedure_seconds.labels(operation.name, operation.outcome).observe(seconds)
            case "connection":
                self._wait_seconds.observe(seconds)
            case kind if kind in CARRIER_REQUESTS:
                self._carrier_seconds.labels(operation.kind, operation.outcome).observe(seconds)

    def _going_on(self, operation: Operation) -> Gauge | None:
        if operation.kind == "request":
            return self._requests_going_on
        return self._carrier_going_on if operation.kind in CARRIER_REQUESTS else None

    def count(self, event: str, outcome: str, number: int) -> None:
        counter = self._counters[event]
        (counter.labels(outcome) if outcome else counter).inc(number)

    # The metrics, served.

    @staticmethod
    def stats_settings(settings: Settings) -> Settings:
        """How the database is asked for its own numbers: by one connection, and not for long."""
        timeout_ms = int(STATS_TIMEOUT_S * 1000)
        return replace(
            settings, pool_size=1, pool_timeout_s=STATS_TIMEOUT_S, pool_max_waiting=1, statement_timeout_ms=timeout_ms
        )

    @asynccontextmanager
    async def serving(self, database: Database, stats: Database, settings: Settings) -> AsyncIterator[None]:
        """Answer at the first port that is free, until the end of the block. Raises SettingsError: there is none."""
        server, thread = self._listen()
        loop = asyncio.get_running_loop()
        self.registry.register(_PoolCollector(database))
        self.registry.register(_StatsCollector(stats, settings, loop))
        lag = asyncio.create_task(self._watch_lag())
        host, port = server.server_address[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        logger.info("metrics", extra={"fields": {"url": f"http://{address}/metrics"}})
        try:
            yield
        finally:
            lag.cancel()
            with suppress(asyncio.CancelledError):
                await lag
            # In a thread: who is being answered may wait for this loop.
            await asyncio.to_thread(server.shutdown)
            server.server_close()
            await asyncio.to_thread(thread.join)

    def _listen(self) -> tuple[Any, threading.Thread]:
        for port in self._ports:
            with suppress(OSError, UnicodeError):
                return start_http_server(port, self._host, self.registry)
        told = "-".join(str(port) for port in sorted({self._ports[0], self._ports[-1]}))
        raise SettingsError(
            f"cannot tell metrics at {self._host}:{told}: no port is free there; with several processes give as many"
        )

    async def _watch_lag(self) -> None:
        while True:
            due = time.perf_counter() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self._lag_seconds.observe(max(time.perf_counter() - due, 0))


class _PoolCollector:
    """The pool of connections, as it is when asked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        stats = self._database.pool_stats()
        for key, (name, text) in _POOL.items():
            yield GaugeMetricFamily(name, text, stats.get(key, 0))
        for key, (name, text) in _POOL_ERRORS.items():
            yield CounterMetricFamily(name, text, stats.get(key, 0))


class _StatsCollector:
    """The metrics of public.service_stats. Prometheus's thread collects them; the query runs in the event loop."""

    def __init__(self, database: Database, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self._database = database
        self._caller = service_caller(settings, "metrics")
        self._loop = loop
        self._lock = threading.Lock()
        self._rows: list[dict[str, Any]] | None = None
        self._asked_at: float | None = None

    def collect(self) -> Iterator[Metric]:
        rows = self._stats()
        yield GaugeMetricFamily(
            "lastcall_stats_up",
            "1: the database told its own numbers. 0: it did not, and they are left out.",
            int(rows is not None),
        )
        families = {
            stat: GaugeMetricFamily(name, text, labels=[label] if label else [])
            for stat, (name, label, text) in STATS.items()
        }
        for row in rows or []:
            if row["name"] in families:  # a newer core may tell more
                families[row["name"]].add_metric([row["label"]] if row["label"] else [], row["value"])
        yield from families.values()

    def _stats(self) -> list[dict[str, Any]] | None:
        with self._lock:
            if self._asked_at is None or time.monotonic() - self._asked_at >= STATS_KEPT_S:
                self._rows = self._ask()
                self._asked_at = time.monotonic()
            return self._rows

    def _ask(self) -> list[dict[str, Any]] | None:
        asked = asyncio.run_coroutine_threadsafe(self._database.run(self._caller, "service_stats", {}), self._loop)
        try:
            return asked.result(2 * STATS_TIMEOUT_S)
        except Exception as error:
            asked.cancel()
            reason = {"reason": type(error).__name__, "code": getattr(error, "code", None)}
            logger.warning("no numbers from the database", extra={"fields": reason})
            return None
