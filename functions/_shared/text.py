"""Text of a request body that Postgres can hold."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Text = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]
"""1 to 500 characters, no NUL."""
