"""What the functions that take contacts have in common."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from .errors import FunctionError

MAX_BYTES = 1 << 24
"""The largest body with contacts: 10,000 of them with 1.6 kB each."""

Number = Annotated[str, Meta(min_length=1, max_length=50, pattern=r"^[^\x00]*$")]
"""A phone number, as it was given."""


def check_json(given: msgspec.Raw | None) -> msgspec.Raw | None:
    """JSON that goes to Postgres as it came, null as if left out. Raises 400 for text that Postgres cannot hold."""
    if given is None or bytes(given) == b"null":
        return None
    if b"\\u0000" in bytes(given):
        raise FunctionError(400, "invalid_body", "Body must not contain NUL characters")
    return given
