"""Asymmetric keys that sign tokens, and a server that publishes them as Supabase Auth does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

from functions._shared.auth import JwksCache

from .tokens import claims

PATH = "/auth/v1/.well-known/jwks.json"


@dataclass(frozen=True)
class SigningKey:
    """A private key with an id."""

    kid: str
    algorithm: str
    private: Any

    @property
    def jwk(self) -> dict[str, Any]:
        """The public part."""
        public = get_default_algorithms()[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        return {**public, "kid": self.kid, "alg": self.algorithm, "use": "sig"}

    @property
    def pem(self) -> bytes:
        """The public key as a PEM file."""
        pem: bytes = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    def token(self, user_id: UUID | str, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """A token signed with it; headers change the token's header."""
        header = {"kid": self.kid, **(headers or {})}
        return jwt.encode(claims(user_id, **changes), self.private, algorithm=self.algorithm, headers=header)


def new_key(kid: str, algorithm: str = "ES256") -> SigningKey:
    match algorithm:
        case "ES256":
            return SigningKey(kid, algorithm, ec.generate_private_key(ec.SECP256R1()))
        case "RS256":
            return SigningKey(kid, algorithm, rsa.generate_private_key(public_exponent=65537, key_size=2048))
        case "EdDSA":
            return SigningKey(kid, algorithm, ed25519.Ed25519PrivateKey.generate())
    raise ValueError(algorithm)


class KeyServer:
    """Publishes keys over HTTP, or fails to. Tests change its attributes while it runs."""

    def __init__(self) -> None:
        self.status = 200
        self.body: bytes = b""
        self.fetches = 0
        self.answers = threading.Event()
        """Cleared: it takes connections and requests, and does not answer them."""
        self.answers.set()
        self.asked = threading.Event()
        """Set when it is asked."""
        self.drips = False
        """Answers a byte now and then, without an end."""
        self.url = ""

    def publish(self, *keys: Any) -> None:
        """Answer with these keys: SigningKeys, or any JSON values."""
        jwks = {"keys": [key.jwk if isinstance(key, SigningKey) else key for key in keys]}
        self.status, self.body = 200, json.dumps(jwks).encode()

    def fail(self, status: int = 500, body: bytes = b"<h1>Oops</h1>") -> None:
        self.status, self.body = status, body


@contextmanager
def key_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyServer]:
    """A key server, which services wait for as long as a slow machine may need.

    monkeypatch: the test's, whose changes are undone in the opposite order.
    """
    monkeypatch.setattr(JwksCache, "TIMEOUT_S", 60.0)
    state = KeyServer()
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.fetches += 1
            state.asked.set()
            state.answers.wait()
            self.send_response(state.status if self.path == PATH else 404)
            self.end_headers()
            try:
                self.wfile.write(state.body)
                while state.drips and not ended.wait(0.05):
                    self.wfile.write(b" ")
            except OSError:
                pass  # the client has left

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            state.answers.set()
            ended.set()
            server.shutdown()
            thread.join()
