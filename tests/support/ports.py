"""Loopback ports that nobody else can take meanwhile."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port(host: str = "127.0.0.1") -> Iterator[int]:
    """A port for a server that cannot choose a free one by itself, until the end of the block.

    On Linux a bound socket that does not listen keeps the kernel from giving the port to anybody, and lets a server
    that sets SO_REUSEADDR listen there. Elsewhere the port is free, and somebody may be faster.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, 0))
        port: int = holder.getsockname()[1]
        if sys.platform != "linux":
            holder.close()
        yield port


@contextmanager
def unanswered_port() -> Iterator[int]:
    """A port at which nobody listens, and nobody can, until the end of the block: each connection is refused."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
