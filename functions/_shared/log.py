"""Logs as JSON lines on stderr. Each field is chosen: no token, body or phone number is logged."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime

from .telemetry import current_operation

logger = logging.getLogger("lastcall")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, message, the fields given as extra={"fields": ...}, the trace_id if
    this is part of a trace, and where an exception came from, without its message, which may quote a row."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update(getattr(record, "fields", {}))
        operation = current_operation()
        if operation is not None and operation.trace_id is not None:
            entry["trace_id"] = operation.trace_id
        if record.exc_info and record.exc_info[0]:
            entry["exception"] = record.exc_info[0].__name__
            entry["sqlstate"] = getattr(record.exc_info[1], "sqlstate", None)
            entry["trace"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(record.exc_info[2])
            ]
        return json.dumps(entry, default=str)


def configure_logging() -> None:
    """Send every logger's lines to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatterer in ("psycopg.pool", "python_multipart"):  # the latter quotes what it was sent
        logging.getLogger(chatterer).setLevel(logging.ERROR)
    for client in ("httpx", "httpx2"):  # a line for each request that they make
        logging.getLogger(client).setLevel(logging.WARNING)
