"""Serve the app with uvicorn on a socket that is already listening."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable

import uvicorn

from ._shared.settings import Settings
from .app import create_app


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, greeting: Callable[[str], str] | None) -> None:
        super().__init__(config)
        self._greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            print(f"ready {url}", flush=True)
            if self._greeting is not None:
                print(self._greeting(url), flush=True)


def serve(settings: Settings, listening: socket.socket, greeting: Callable[[str], str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; then requests in flight finish. Prints `ready http://...`, and then the greeting,
    which is made of the address."""
    config = uvicorn.Config(
        create_app(settings),
        # Not httptools, where it is installed: it lets pass what a proxy may read as other requests than it does.
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.statement_timeout_ms // 1000 + 1,
        server_header=False,
    )
    # uvicorn repeats the signal that ended it: let SIGTERM too come back as an exception, so that the
    # caller's clean-up runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_Server(config, greeting).serve(sockets=[listening]))
