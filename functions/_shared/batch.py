"""Code shared by the functions that create or change batches."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from .auth import verify_jwt
from .database import run_procedure
from .http import read_body, reply
from .text import Text


class BatchSettings(msgspec.Struct, kw_only=True):
    """The settings of a new batch, by the names that public.create_batch has for them; it has the defaults of those
    that are left out."""

    calls_per_minute: int | None = None
    max_concurrent: int | None = None
    scheduled_for: Annotated[datetime, Meta(tz=True)] | None = None
    mode: Literal["immediate", "scheduled"] | None = None
    name: Text | None = None
    external_id: Text | None = None
    user_id: UUID | None = None
    calling_numbers: list[Text] | None = None
    retry_delay_seconds: int | None = None
    retry_outcomes: list[Text] | None = None
    calling_hours: dict[Text, Text] | None = None
    allowed_days: list[int] | None = None
    timezone: Text | None = None
    max_calls_per_number: int | None = None


def given(arguments: msgspec.Struct) -> dict[str, Any]:
    """The arguments that the request gives: the procedure has defaults for the others."""
    return {name: value for name, value in msgspec.structs.asdict(arguments).items() if value is not None}


class ChangeBatch(msgspec.Struct):
    """batch_id: the batch to change. reason: for the audit trail."""

    batch_id: UUID
    reason: Text | None = None


async def change_batch(request: Request, procedure: str) -> Response:
    """Call a procedure of the form (batch_id, idempotency_key, reason) for the caller, and give its row."""
    caller = await verify_jwt(request)
    body = await read_body(request, ChangeBatch)
    key = request.headers.get("idempotency-key")
    row = await run_procedure(
        request, caller, procedure, batch_id=body.batch_id, idempotency_key=key, reason=body.reason
    )
    return reply(row)
