"""An app over real HTTP, and what it writes into the log."""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from functions._shared.log import JsonFormatter


@contextmanager
def serving(app: ASGIApp) -> Iterator[tuple[str, int]]:
    """The app on a loopback address, which it gives."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    address = listening.getsockname()
    thread.start()
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join()


class Log:
    """The lines of every logger."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def lines(self, message: str | None = None) -> list[dict[str, Any]]:
        """The lines, each of which is a JSON object; with a message, those that say so."""
        lines = [json.loads(line) for line in self.text.splitlines()]
        assert all(isinstance(line, dict) for line in lines)
        return [line for line in lines if message in (None, line["message"])]


@contextmanager
def logged() -> Iterator[Log]:
    """The service's log, as it writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the tests' own client
    try:
        yield Log(stream)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
