"""The files that `lastcall` keeps on this machine, and the error of commands that cannot run."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from ._shared.settings import MIN_SECRET_BYTES

STATE = Path(".lastcall")
"""The folder of the embedded default, in the current folder."""


class CommandError(Exception):
    """The command cannot run; the message says what to do about it."""

    exit_status = 2
    code = "cannot_run"
    """A short word for programs."""


def printable(text: str) -> str:
    """Text of others, on one line and with nothing in it that a terminal obeys."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in text.strip())


def kept_secret() -> str:
    """The HS256 secret of the embedded default: made once, readable by its owner only."""
    path = STATE / "jwt-secret"
    try:
        STATE.mkdir(exist_ok=True)
        if not path.exists():
            with tempfile.NamedTemporaryFile("w", dir=STATE, prefix="jwt-secret-") as file:
                file.write(secrets.token_hex(MIN_SECRET_BYTES))
                file.flush()
                # There at once and whole; of two who do this at the same time, the first one counts.
                with contextlib.suppress(FileExistsError):
                    os.link(file.name, path)
        return path.read_text()
    except OSError as error:
        raise CommandError(f"cannot keep a secret in {path}: {error.strerror}") from None


def make_token(secret: str, *, user: str, expires_in: int, env: Mapping[str, str]) -> str:
    """A user's JWT as Supabase Auth would make it, valid for expires_in seconds."""
    import jwt

    now = int(time.time())
    url = (env.get("SUPABASE_URL") or "").rstrip("/")
    return jwt.encode(
        {
            "iss": env.get("SUPABASE_JWT_ISSUER") or (f"{url}/auth/v1" if url else "lastcall"),
            "aud": env.get("SUPABASE_JWT_AUDIENCE") or "authenticated",
            "role": "authenticated",
            "sub": user,
            "iat": now,
            "exp": now + expires_in,
        },
        secret,
        algorithm="HS256",
    )
