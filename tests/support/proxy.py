"""A man in the middle of the functions and Postgres, who listens, and cuts when told to."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

_SOCKET = ".s.PGSQL.5432"
_READY = b"Z\x00\x00\x00\x05"
"""A ReadyForQuery, without the status of the transaction."""


class Proxy:
    """Passes everything on between clients, who come by a Unix socket, and the server."""

    def __init__(self, folder: Path, uri: str) -> None:
        parts = urlsplit(uri)
        (self._folder,) = parse_qs(parts.query).get("host", [None])
        self._address = (parts.hostname, parts.port)
        self.uri = parts._replace(netloc=f"{parts.username}@", query=f"host={quote(str(folder), safe='')}").geturl()
        """The server's URI, by way of the proxy."""
        self.passes_replies = threading.Event()
        """Cleared: what the server says is held back."""
        self.passes_replies.set()
        self.replies_at_once = False
        """Whether what the server says comes in one piece, when it is ready for the next query."""
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(folder / _SOCKET))
        self._listening.listen()
        self._sockets: list[socket.socket] = []
        self._sent: list[bytearray] = []
        self._threads: list[threading.Thread] = []

    def sent(self) -> list[str]:
        """For each connection so far: the types of the messages that the client sent after its first."""
        return ["".join(_types(bytes(data))) for data in self._sent]

    def cut(self) -> None:
        """End the connections of now, and lose what was held back; those to come are passed on again."""
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.passes_replies.set()

    def _connect(self) -> socket.socket:
        if self._folder is None:
            return socket.create_connection(self._address)
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(Path(self._folder) / _SOCKET))
        return server

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = self._connect()
            sent = bytearray()
            self._sent.append(sent)
            self._sockets += [client, server]
            for pump in (self._requests, self._replies):
                self._threads.append(threading.Thread(target=pump, args=(client, server, sent)))
                self._threads[-1].start()

    def _requests(self, client: socket.socket, server: socket.socket, sent: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                sent += data
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _replies(self, client: socket.socket, server: socket.socket, _sent: bytearray) -> None:
        with contextlib.suppress(OSError):
            said = b""
            while data := server.recv(65_536):
                said += data
                if self.replies_at_once and said[-6:-1] != _READY:
                    continue
                self.passes_replies.wait()
                client.sendall(said)
                said = b""
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in (self._listening, *self._sockets):
            end.close()


@contextmanager
def proxy(folder: Path, uri: str) -> Iterator[Proxy]:
    """A proxy to the server of that URI, with its socket in `folder`."""
    between = Proxy(folder, uri)
    accepting = threading.Thread(target=between.run)
    accepting.start()
    try:
        yield between
    finally:
        between.close()
        accepting.join()


def _types(data: bytes) -> Iterator[str]:
    """The types of the protocol messages in what a client sent: P parse, B bind, D describe, E execute,
    S sync, H flush, Q query, X terminate."""
    at = struct.unpack_from("!i", data)[0] if len(data) >= 4 else len(data)  # the startup message has none
    while at + 5 <= len(data):
        yield chr(data[at])
        at += 1 + struct.unpack_from("!i", data, at + 1)[0]
