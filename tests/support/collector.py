"""A stand-in for an OpenTelemetry collector: takes spans by OTLP over HTTP, and keeps them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span:
    """A span as it was sent."""

    def __init__(self, sent: Any) -> None:
        self.name: str = sent.name
        self.trace_id: str = sent.trace_id.hex()
        self.id: str = sent.span_id.hex()
        self.parent: str = sent.parent_span_id.hex()
        self.kind: int = sent.kind
        self.failed: bool = sent.status.code == 2
        self.links: list[str] = [link.trace_id.hex() for link in sent.links]
        self.took_ns: int = sent.end_time_unix_nano - sent.start_time_unix_nano
        self.attributes: dict[str, Any] = {
            item.key: getattr(item.value, item.value.WhichOneof("value")) for item in sent.attributes
        }


class Collector:
    """The requests that arrived."""

    def __init__(self) -> None:
        self.url = ""
        self.paths: set[str] = set()
        self.sent = b""
        """Every byte of it."""
        self.spans: list[Span] = []
        self.services: set[str] = set()

    def take(self, path: str, body: bytes) -> None:
        self.paths.add(path)
        self.sent += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {item.key: item.value.string_value for item in resource.resource.attributes}
            self.services.add(named["service.name"])
            self.spans += [Span(span) for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector at a loopback address."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
