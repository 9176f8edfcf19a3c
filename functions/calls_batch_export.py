"""GET calls-batch-export: a batch's contacts as CSV, page by page from public.export_contacts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ._shared.auth import verify_jwt
from ._shared.contacts_csv import HEADER, contact_lines
from ._shared.database import run_procedure
from ._shared.http import edge_function, read_query
from ._shared.status import ContactStatus

PAGE_ROWS = 1000

Page = dict[str, Any]


class ExportContacts(msgspec.Struct):
    """contact_status: only these contacts."""

    batch_id: UUID
    contact_status: ContactStatus | None = None


@edge_function("GET", failure="Failed to export contacts")
async def calls_batch_export(request: Request) -> Response:
    """The batch's contacts and their results in dial order, as they are when their page is read."""
    caller = await verify_jwt(request)
    query = read_query(request, ExportContacts)

    async def read_page(after: str | None) -> Page:
        page: Page = await run_procedure(
            request,
            caller,
            "export_contacts",
            batch_id=query.batch_id,
            after=after,
            max_rows=PAGE_ROWS,
            contact_status=query.contact_status,
        )
        return page

    # Before the reply begins: what is refused is answered as an error.
    first = await read_page(None)
    headers = {
        "Cache-Control": "no-store",
        "Content-Disposition": f'attachment; filename="batch-{query.batch_id}.csv"',
        "X-Content-Type-Options": "nosniff",
    }
    media_type = "text/csv; charset=utf-8"
    if request.method == "HEAD":
        return Response(headers=headers, media_type=media_type)
    return StreamingResponse(_csv(first, read_page), headers=headers, media_type=media_type)


async def _csv(page: Page, read_page: Callable[[str | None], Awaitable[Page]]) -> AsyncIterator[bytes]:
    """The file, a page at a time. An error ends the connection, so that no part of it looks complete."""
    yield HEADER
    while True:
        if page["contacts"]:
            yield contact_lines(page["contacts"])
        if page["next_cursor"] is None:
            return
        page = await read_page(page["next_cursor"])
