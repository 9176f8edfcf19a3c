"""Tokens as Supabase Auth signs them, and spoiled ones."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any
from uuid import UUID

import jwt

SECRET = "a-secret-for-tests-of-at-least-32-bytes"
ISSUER = "https://project.example/auth/v1"
LATER = 4_000_000_000
"""The year 2096: a token outlasts the longest run, and tells nothing of when it was made."""


def claims(user_id: UUID | str, **changes: Any) -> dict[str, Any]:
    """A user's claims; a change to None leaves that claim out."""
    given = {
        "iss": ISSUER,
        "aud": "authenticated",
        "role": "authenticated",
        "sub": str(user_id),
        "exp": LATER,
        **changes,
    }
    return {name: value for name, value in given.items() if value is not None}


def token(user_id: UUID | str, secret: str = SECRET, **changes: Any) -> str:
    return jwt.encode(claims(user_id, **changes), secret, algorithm="HS256")


def bearer(user_id: UUID | str, **changes: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user_id, **changes)}"}


def b64(data: bytes) -> str:
    """Base64 as tokens have it: for URLs, without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def handmade(header: Any, payload: Any, secret: bytes = SECRET.encode()) -> str:
    """A token with whatever header and payload, signed by HS256."""
    signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(payload).encode())}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), hashlib.sha256))}"
