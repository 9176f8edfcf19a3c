"""POST /api/call/start-calling: public.start_batch over HTTP."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.contacts import MAX_BYTES, check_json
from ._shared.database import run_procedure
from ._shared.envelope import envelope, error_envelope
from ._shared.http import edge_function, read_body, reply
from ._shared.text import Text


class StartCalling(msgspec.Struct, rename="camel"):
    """batch_id: the batch to dial. user_id: the user responsible for it. Both UUIDs or external ids.
    calling_numbers: to call from in turn. call_data: contacts to call instead of those stored, each with a
    phoneNumber; its other keys are for the agent. uuid: the client's own word for the request, accepted and unused.
    reason: for the audit trail."""

    batch_id: Text
    user_id: Text
    calling_numbers: list[Text] | None = None
    call_data: msgspec.Raw = msgspec.Raw(b"null")
    uuid: Text | None = None
    reason: Text | None = None


@edge_function("POST", failure="Failed to start calling service", errors=error_envelope, has_large_body=True)
async def start_calling(request: Request) -> Response:
    """Dial the batch now: one that waits for its time, or that is paused or stopped."""
    caller = await verify_jwt(request)
    body = await read_body(request, StartCalling, max_bytes=MAX_BYTES)
    started = await run_procedure(
        request,
        caller,
        "start_batch",
        batch_id=body.batch_id,
        user_id=body.user_id,
        calling_numbers=body.calling_numbers,
        call_data=check_json(body.call_data),
        idempotency_key=request.headers.get("idempotency-key"),
        reason=body.reason,
    )
    return reply(envelope({"batchId": started["batch_id"], "status": "started"}))
