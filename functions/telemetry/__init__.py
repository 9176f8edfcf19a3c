"""Metrics for Prometheus and traces by OpenTelemetry, each when the settings ask for it. Neither library is imported
before that. grafana.json and alerts.yaml, beside this file, are made for these metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from .._shared.database import Database, connect_database
from .._shared.settings import Settings
from .._shared.telemetry import NO_TELEMETRY, Telemetry


class ProcessTelemetry:
    """The listeners of a process."""

    def __init__(self, settings: Settings, ports: range | None, name: str) -> None:
        """ports: where it tells metrics. name: what it is called in traces."""
        self._settings = settings
        self._metrics = self._traces = None
        if ports is not None:
            from .metrics import Metrics

            self._metrics = Metrics(settings.metrics_host, ports)
        if settings.traces is not None:
            from .traces import Traces

            self._traces = Traces(settings.traces, name)
        listeners = [listener for listener in (self._metrics, self._traces) if listener is not None]
        self.telemetry = Telemetry(listeners) if listeners else NO_TELEMETRY

    @asynccontextmanager
    async def running(self, database: Database) -> AsyncIterator[None]:
        """Tell what is seen, and of the pool of this database, until the end of the block. Raises SettingsError:
        there is no port for metrics."""
        async with AsyncExitStack() as stack:
            if self._traces is not None:
                stack.push_async_callback(self._traces.aclose)
            if self._metrics is not None:
                # Statistics have a pool of their own: an exhausted pool must not hide itself.
                stats = connect_database(self._metrics.stats_settings(self._settings))
                stack.push_async_callback(stats.close)
                await stack.enter_async_context(self._metrics.serving(database, stats, self._settings))
            yield
