"""GET calls-batch-export: a batch's contacts as CSV, page by page from public.export_contacts."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ._shared.auth import verify_jwt
from ._shared.database import call
from ._shared.http import edge_function, read_query
from ._shared.status import ContactStatus

PAGE_ROWS = 1000
COLUMNS = [
    "id", "phone_number", "first_name", "last_name", "email", "company", "title", "timezone", "status", "attempts",
    "max_attempts", "outcome", "duration_seconds", "outcome_notes", "call_id", "last_attempt_at", "completed_at",
    "created_at", "do_not_call", "custom_data",
]  # fmt: skip
# What spreadsheets take for the beginning of a formula, the full-width forms among it.
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-][0-9]+(\.[0-9]+)?", re.ASCII)

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
        page: Page = await call(
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
    yield _lines([COLUMNS])
    while True:
        if page["contacts"]:
            yield _lines([[_cell(contact[column]) for column in COLUMNS] for contact in page["contacts"]])
        if page["next_cursor"] is None:
            return
        page = await read_page(page["next_cursor"])


def _lines(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    """A value as text that no spreadsheet computes: what looks like a formula gets a ' in front, but a
    number with a sign, such as a phone number, can do nothing and stays as it is."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
