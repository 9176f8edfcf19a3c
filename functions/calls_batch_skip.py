"""POST calls-batch-skip: public.skip_contacts over HTTP."""

from __future__ import annotations

from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.contacts import check_json
from ._shared.database import run_procedure
from ._shared.http import edge_function, read_body, reply
from ._shared.text import Text

# Bytes of a body: 10,000 ids and a filter need at most as many.
_MAX_BYTES = 1 << 20


class SkipContacts(msgspec.Struct):
    """batch_id: whose contacts. contact_ids, filter: which of them; one or both. dry_run: count, and change nothing.
    reason: for the audit trail."""

    batch_id: UUID
    contact_ids: list[Text] | None = None
    filter: msgspec.Raw = msgspec.Raw(b"null")
    dry_run: bool = False
    reason: Text | None = None


@edge_function("POST", failure="Failed to skip contacts")
async def calls_batch_skip(request: Request) -> Response:
    """Skip some contacts of a batch for good; calls in progress to them finish, and are the last."""
    caller = await verify_jwt(request)
    body = await read_body(request, SkipContacts, max_bytes=_MAX_BYTES)
    row = await run_procedure(
        request,
        caller,
        "skip_contacts",
        batch_id=body.batch_id,
        contact_ids=body.contact_ids,
        filter=check_json(body.filter),
        dry_run=body.dry_run,
        idempotency_key=request.headers.get("idempotency-key"),
        reason=body.reason,
    )
    return reply(row)
