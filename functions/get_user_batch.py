"""GET /api/call/batch-details/{id}: public.get_user_batch over HTTP."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.database import run_procedure
from ._shared.envelope import envelope, error_envelope
from ._shared.errors import FunctionError
from ._shared.http import edge_function, read_query, reply
from ._shared.status import ContactStatus
from ._shared.text import Text


class GetUserBatch(msgspec.Struct, rename="camel"):
    """id: of the batch, UUID or external id. page: from 1. limit: 1 to 100 a page. filter: a JSON object, see Filter.
    search: part of the phone number or name."""

    id: Text
    page: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    limit: Annotated[int, Meta(ge=1, le=100)] = 10
    filter: Text = "{}"
    sort_by: Literal["createdAt", "phoneNumber", "callStatus"] = "createdAt"
    sort_order: Literal["asc", "desc"] = "asc"
    search: Text | None = None


class Filter(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Which contacts: those of this status."""

    call_status: ContactStatus | None = None


@edge_function("GET", failure="Failed to fetch calls", errors=error_envelope)
async def get_user_batch(request: Request) -> Response:
    """The batch's contacts and the calls to each."""
    caller = await verify_jwt(request)
    query = read_query(request, GetUserBatch)
    try:
        only = msgspec.json.decode(query.filter, type=Filter)
    except (msgspec.DecodeError, RecursionError):
        message = 'filter must be a JSON object such as {"callStatus": "completed"}'
        raise FunctionError(400, "invalid_query", message) from None
    data = await run_procedure(
        request,
        caller,
        "get_user_batch",
        batch_id=query.id,
        page=query.page,
        page_size=query.limit,
        call_status=only.call_status,
        search=query.search,
        sort_by=query.sort_by,
        descending=query.sort_order == "desc",
    )
    return reply(envelope(data, message="Calls fetched successfully"))
