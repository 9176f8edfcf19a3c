"""The metrics of a service, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx2
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.testclient import TestClient

from functions._shared.settings import Settings
from functions.app import create_app

from .serving import logged

ANY_PORT = range(1)
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


class Scrape:
    """One look at what is told."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        response = httpx2.get(url, headers=headers, timeout=120)
        assert response.status_code == 200
        self.text = response.text
        parse = parse_openmetrics if headers == OPENMETRICS else parse_text
        self.families: dict[str, Metric] = {family.name: family for family in parse(self.text)}
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        """The sample of that name and these labels; None: there is none."""
        return self.samples.get((name, frozenset(labels.items())))

    def by(self, name: str, label: str) -> dict[str, float]:
        """The samples of that name by one of their labels."""
        return {dict(labels)[label]: value for (of, labels), value in self.samples.items() if of == name}


@contextmanager
def scraped(settings: Settings) -> Iterator[tuple[TestClient, str]]:
    """A client of the functions, and where they tell their metrics."""
    with (
        logged() as log,
        TestClient(create_app(replace(settings, metrics_ports=ANY_PORT)), raise_server_exceptions=False) as client,
    ):
        yield client, log.lines("metrics")[-1]["url"]
