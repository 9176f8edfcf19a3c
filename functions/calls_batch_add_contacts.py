"""POST calls-batch-add-contacts: public.add_contacts over HTTP."""

from __future__ import annotations

from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.contacts import MAX_BYTES, check_json
from ._shared.database import run_procedure
from ._shared.http import edge_function, read_body, reply


class AddContacts(msgspec.Struct):
    """batch_id: the batch to add to. contacts: 1 to 10,000, as calls-batch-create takes them."""

    batch_id: UUID
    contacts: msgspec.Raw


@edge_function("POST", failure="Failed to add contacts", has_large_body=True)
async def calls_batch_add_contacts(request: Request) -> Response:
    """Add contacts at the end of the batch's dial order."""
    caller = await verify_jwt(request)
    body = await read_body(request, AddContacts, max_bytes=MAX_BYTES)
    key = request.headers.get("idempotency-key")
    contacts = check_json(body.contacts)
    row = await run_procedure(
        request, caller, "add_contacts", batch_id=body.batch_id, contacts=contacts, idempotency_key=key
    )
    return reply(row)
