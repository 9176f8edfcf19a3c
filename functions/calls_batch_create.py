"""POST calls-batch-create: public.create_batch over HTTP."""

from __future__ import annotations

from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.batch import BatchSettings, given
from ._shared.contacts import MAX_BYTES, check_json
from ._shared.database import run_procedure
from ._shared.http import edge_function, read_body, reply
from ._shared.text import Text


class CreateBatch(BatchSettings, kw_only=True):
    """A batch's settings, who calls for what from which number, and contacts: 1 to 10,000."""

    agent_mapping_id: UUID
    from_number: Text
    campaign_id: UUID
    contacts: msgspec.Raw


@edge_function("POST", failure="Failed to create batch", has_large_body=True)
async def calls_batch_create(request: Request) -> Response:
    """Create a batch with its first contacts; it is dialed from its time on."""
    caller = await verify_jwt(request)
    body = await read_body(request, CreateBatch, max_bytes=MAX_BYTES)
    check_json(body.contacts)
    key = request.headers.get("idempotency-key")
    return reply(await run_procedure(request, caller, "create_batch", idempotency_key=key, **given(body)), 201)
