"""POST calls-batch-retry: public.retry_batch over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.database import run_procedure
from ._shared.http import edge_function, read_body, reply
from ._shared.text import Text


class RetryBatch(msgspec.Struct):
    """batch_id: whose failed contacts. outcomes: only those whose last call had one of these. scheduled_for: when;
    left out: at once. reason: for the audit trail."""

    batch_id: UUID
    outcomes: list[Text] | None = None
    scheduled_for: Annotated[datetime, Meta(tz=True)] | None = None
    reason: Text | None = None


@edge_function("POST", failure="Failed to retry batch")
async def calls_batch_retry(request: Request) -> Response:
    """Dial the failed contacts of a batch again, as a new batch."""
    caller = await verify_jwt(request)
    body = await read_body(request, RetryBatch)
    key = request.headers.get("idempotency-key")
    return reply(
        await run_procedure(request, caller, "retry_batch", idempotency_key=key, **msgspec.structs.asdict(body)), 201
    )
