"""Traces by OpenTelemetry's SDK, set up by its own environment variables. A span tells which function, procedure or
request to the carrier it was, ids and codes; never a path as it came, which may hold a secret, nor SQL, headers, bodies
or messages. Hence no ready-made instrumentation, which tells these."""

from __future__ import annotations

import asyncio
import os
import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .._shared.telemetry import CARRIER_REQUESTS, Operation

_ROOTS = ("request", "dial", "find", "withdraw", "hang_up", "record")
"""The operations that begin a trace where there is none; other operations are recorded only within a trace."""
_ATTRIBUTES = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "sqlstate": "db.response.status_code",
}
"""Details that OpenTelemetry has a name for; the others are lastcall.<name>."""


class Traces:
    """Turns operations into spans. An inner operation is sent with the outer one: nothing is sent of an operation that
    came to nothing."""

    def __init__(self, exporter: str, service_name: str) -> None:
        """exporter: otlp or console."""
        given = Resource.create()
        named = bool(os.environ.get("OTEL_SERVICE_NAME")) or not str(
            given.attributes.get(SERVICE_NAME, "unknown_service")
        ).startswith("unknown_service")
        self._provider = TracerProvider(
            resource=given if named else given.merge(Resource({SERVICE_NAME: service_name})), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(exporter)))
        self._tracer = self._provider.get_tracer("lastcall")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, operation: Operation) -> None:
        parent = operation.parent.span if operation.parent is not None else None
        if parent is not None:
            context = trace.set_span_in_context(parent.span, Context())
        elif operation.kind in _ROOTS:
            context = self._propagator.extract(operation.remote, Context())
        else:
            return
        links = [Link(linked.span.span.get_span_context()) for linked in operation.links if linked.span is not None]
        span = self._tracer.start_span(operation.kind, context, _kind(operation), links=links)
        operation.span = _Span(span)
        operation.trace_id = trace.format_trace_id(span.get_span_context().trace_id)

    def end(self, operation: Operation) -> None:
        if operation.span is None:
            return
        ended: list[tuple[trace.Span, int]] = [(operation.span.span, time.time_ns()), *operation.span.held]
        _describe(operation)
        parent = operation.parent
        if operation.is_dropped:
            return
        if parent is not None and parent.span is not None and parent.seconds is None:
            parent.span.held += ended
            return
        for span, at in ended:
            span.end(at)

    def count(self, event: str, outcome: str, number: int) -> None:
        """Metrics tell."""

    async def aclose(self) -> None:
        """Send what is left."""
        await asyncio.to_thread(self._provider.shutdown)


class _Span:
    """A span, and those within it that have ended, each with its time."""

    def __init__(self, span: trace.Span) -> None:
        self.span = span
        self.held: list[tuple[trace.Span, int]] = []


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _kind(operation: Operation) -> SpanKind:
    if operation.kind == "request":
        return SpanKind.SERVER
    return SpanKind.CLIENT if operation.kind in ("procedure", *CARRIER_REQUESTS) else SpanKind.INTERNAL


def _describe(operation: Operation) -> None:
    span: trace.Span = operation.span.span
    if not span.is_recording():
        return
    match operation.kind:
        case "request":
            span.update_name(f"{operation.details['method']} {operation.details.get('route', '')}".strip())
            span.set_attribute("lastcall.function", operation.name)
            failed = int(operation.details["status"]) >= 500
        case "procedure":
            span.update_name(operation.name)
            span.set_attributes({"db.system.name": "postgresql", "db.stored_procedure.name": operation.name})
            failed = operation.outcome in ("unavailable", "error")
        case _:
            failed = operation.outcome in ("unavailable", "unknown", "error")
    span.set_attribute("lastcall.outcome", operation.outcome)
    for name, value in operation.details.items():
        if value != "":
            span.set_attribute(_ATTRIBUTES.get(name, f"lastcall.{name}"), value)
    if failed:
        span.set_attribute("error.type", operation.outcome)
        span.set_status(Status(StatusCode.ERROR))
