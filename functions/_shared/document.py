"""A document that is the same for everyone until the next release."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

OPENAPI = Path(__file__).parent.parent / "openapi.yaml"
"""The description of all functions, kept by hand."""


class Document:
    """Its bytes, and the ETag by which clients keep it."""

    def __init__(self, body: bytes, media_type: str, headers: dict[str, str] | None = None) -> None:
        self.body = body
        self.media_type = media_type
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        # Kept, and asked for again: the reply is 304 until a release changes it.
        self.headers = {
            "Cache-Control": "no-cache",
            "ETag": etag,
            "X-Content-Type-Options": "nosniff",
            **(headers or {}),
        }

    def reply(self, request: Request) -> Response:
        """The document, or 304 to who has it."""
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if self.headers["ETag"] in known or known == ["*"]:
            return Response(status_code=304, headers=self.headers)
        return Response(self.body, headers=self.headers, media_type=self.media_type)
