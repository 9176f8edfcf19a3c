"""POST webhook-ingest: public.ingest_webhook over HTTP."""

from __future__ import annotations

from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import anonymous_caller
from ._shared.database import run_procedure
from ._shared.http import edge_function, read_path, read_text, reply
from ._shared.text import Text

MAX_BYTES = 262_144
"""As ingest_webhook has it: a call that ended comes with its summary and all it was told."""
_HEADERS = (
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "x-ultravox-webhook-timestamp",
    "x-ultravox-webhook-signature",
)


class IngestWebhook(msgspec.Struct):
    """agency_id: whose carrier it is. webhook_secret: where it can show its secret in no better way than this."""

    agency_id: UUID
    webhook_secret: Text | None = None


@edge_function("POST", failure="Failed to store webhook")
async def webhook_ingest(request: Request) -> Response:
    """Store what the carrier reports, if it is signed; it is applied later."""
    path = read_path(request, IngestWebhook)
    body = await read_text(request, max_bytes=MAX_BYTES)
    row = await run_procedure(
        request,
        anonymous_caller(request.app.state.settings, request.state.request_id),
        "ingest_webhook",
        agency_id=path.agency_id,
        body=body,
        headers={name: request.headers[name] for name in _HEADERS if name in request.headers},
        path_secret=path.webhook_secret,
    )
    return reply(row)
