"""POST calls-batch-create: public.create_batch over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.contacts import MAX_BYTES, Number, check_json
from ._shared.database import call
from ._shared.http import edge_function, read_body, reply
from ._shared.text import Text


class CreateBatch(msgspec.Struct):
    """The arguments of public.create_batch, by its names; those that are left out have its defaults."""

    agent_mapping_id: UUID
    from_number: Number
    campaign_id: UUID
    contacts: msgspec.Raw
    calls_per_minute: int | None = None
    max_concurrent: int | None = None
    scheduled_for: Annotated[datetime, Meta(tz=True)] | None = None
    mode: Literal["immediate", "scheduled"] | None = None
    name: Text | None = None
    external_id: Text | None = None
    user_id: UUID | None = None
    calling_numbers: list[Number] | None = None
    retry_delay_seconds: int | None = None
    retry_outcomes: list[Text] | None = None
    calling_hours: dict[str, Text] | None = None
    allowed_days: list[int] | None = None
    timezone: Text | None = None
    max_calls_per_number: int | None = None


@edge_function("POST", failure="Failed to create batch")
async def calls_batch_create(request: Request) -> Response:
    """Create a batch with its first contacts; it is dialed from its time on."""
    caller = await verify_jwt(request)
    body = await read_body(request, CreateBatch, max_bytes=MAX_BYTES)
    check_json(body.contacts)
    given = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not None}
    key = request.headers.get("idempotency-key")
    return reply(await call(request, caller, "create_batch", idempotency_key=key, **given), 201)
