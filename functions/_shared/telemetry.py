"""Operations of the service, reported to listeners. By default there are none. The settings add metrics and traces
(functions/telemetry), the only modules that know Prometheus and OpenTelemetry."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Literal, Protocol

from .errors import FunctionError

Kind = Literal["request", "procedure", "connection", "dial", "place", "find", "withdraw", "hang_up", "record"]
"""request: one to a function. procedure: one try at a call of the database. connection: the wait for one. dial: a
claim and what follows from it. place, find, withdraw, hang_up: a request to the carrier. record: results of calls of
one batch."""

CARRIER_REQUESTS = ("place", "find", "withdraw", "hang_up")
"""The kinds that are requests to the carrier."""

_current: ContextVar[Operation | None] = ContextVar("operation", default=None)


class Operation:
    """Something that takes time, and within which others happen. Ends with its block, or by end()."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        kind: Kind,
        name: str,
        details: dict[str, str | int],
        links: Sequence[Operation],
        remote: Mapping[str, str],
    ) -> None:
        self._listeners = listeners
        self._token: Token[Operation | None] | None = None
        self._started = time.perf_counter()
        self.kind = kind
        self.name = name
        """Which function, procedure and so on: one of a few, never what somebody sent."""
        self.outcome: str = ""
        """How it ended, one word of a few. An operation that raised: refused, unavailable, error, or abandoned (it was
        ended from outside)."""
        self.details = details
        """Further attributes for traces: ids and codes, never a name, a number or a text from a request."""
        self.links = links
        """Operations that this one goes on with, though it is not within them."""
        self.remote = remote
        """Headers that may name the trace which it is part of."""
        self.parent = _current.get() if listeners else None
        self.is_dropped = False
        """Nothing came of it: not worth a trace."""
        self.seconds: float | None = None
        """How long it took; None: it has not ended."""
        self.trace_id: str | None = None
        self.span: Any = None
        """The span, if traces are on."""

    def __enter__(self) -> Operation:
        if self._listeners:
            self._token = _current.set(self)
            for listener in self._listeners:
                listener.begin(self)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is not None and not self.outcome and self.seconds is None:
            self.outcome = _outcome(error)
        self.end()

    def end(self) -> None:
        """It ends here, though its block goes on."""
        if self.seconds is not None:
            return
        self.seconds = time.perf_counter() - self._started
        self.outcome = self.outcome or "ok"
        if self._token is not None:
            _current.reset(self._token)
            for listener in self._listeners:
                listener.end(self)


def _outcome(error: BaseException) -> str:
    if isinstance(error, FunctionError):
        return "unavailable" if error.status == 503 else "refused"
    return "error" if isinstance(error, Exception) else "abandoned"


class Listener(Protocol):
    """Receives the beginning, the end and the counts of operations."""

    def begin(self, operation: Operation) -> None:
        """An operation begins."""

    def end(self, operation: Operation) -> None:
        """It has ended."""

    def count(self, event: str, outcome: str, number: int) -> None:
        """Something happened so many times."""


class Telemetry:
    """The beginning of operations and the counting of events, for all listeners."""

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = listeners

    def operation(
        self,
        kind: Kind,
        name: str,
        *,
        links: Sequence[Operation] = (),
        remote: Mapping[str, str] | None = None,
        **details: str | int,
    ) -> Operation:
        """An operation, which begins with its block."""
        return Operation(self._listeners, kind, name, details, links, remote or {})

    def count(self, event: str, outcome: str = "", number: int = 1) -> None:
        """Something happened so many times; event and outcome are words of a few."""
        for listener in self._listeners:
            listener.count(event, outcome, number)


def current_operation() -> Operation | None:
    """The operation within which this happens, if anybody watches."""
    return _current.get()


NO_TELEMETRY = Telemetry()
"""Telemetry without a listener."""
