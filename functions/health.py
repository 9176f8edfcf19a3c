"""GET /health: whether the service can do its work."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ._shared.http import edge_function, reply


@edge_function("GET", failure="Health check failed")
async def health(request: Request) -> Response:
    """200 when the database answers, 503 when it does not."""
    await request.app.state.database.ping()
    return reply({"status": "ok", "database": "ok"})
