"""Code shared by the functions that take contacts."""

from __future__ import annotations

import msgspec

from .errors import FunctionError

MAX_BYTES = 1 << 24
"""The largest body with contacts: 10,000 of them with 1.6 kB each."""


def check_json(given: msgspec.Raw) -> msgspec.Raw | None:
    """JSON that goes to Postgres as it came, null as if left out. Raises 400 (not UTF-8)."""
    if bytes(given) == b"null":
        return None
    try:
        bytes(given).decode()
    except UnicodeDecodeError:
        raise FunctionError(400, "invalid_body", "Body must be a JSON object") from None
    return given
