"""GET /: the addresses of the service, for a newcomer."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ._shared.http import edge_function, reply


@edge_function("GET", failure="Failed to list the addresses")
async def root(_request: Request) -> Response:
    """The addresses of the description, as a page and as a file, and of the functions."""
    return reply(
        {
            "service": "lastcall",
            "docs": "/docs",
            "openapi": "/openapi.yaml",
            "health": "/health",
            "functions": "/functions/v1/",
        }
    )
