"""POST calls-batch-import: a file of contacts into a batch. GET: the rows of it that were invalid."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from anyio.to_thread import run_sync
from msgspec import Meta
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ._shared.auth import Caller, verify_jwt
from ._shared.batch import BatchSettings, given
from ._shared.contact_file import ContactFile, FileError
from ._shared.contact_reader import read_apart
from ._shared.contacts_csv import ERRORS_HEADER, error_lines
from ._shared.database import run_procedure
from ._shared.errors import FunctionError
from ._shared.http import edge_function, invalid, read_form, read_query, reply
from ._shared.text import Text

_JSON_FIELDS = ("calling_numbers", "retry_outcomes", "calling_hours", "allowed_days")
_ALIASES = {"batch_name": "name", "calling_hour": "calling_hours", "delay": "retry_delay_seconds"}
_ERRORS_SHOWN = 100


class ImportTarget(BatchSettings, kw_only=True):
    """The batch that the contacts go into: batch_id, or what calls-batch-create has for a new one. max_attempts: of
    contacts that do not say."""

    batch_id: UUID | None = None
    agent_mapping_id: UUID | None = None
    from_number: Text | None = None
    campaign_id: UUID | None = None
    max_attempts: int | None = None


class ImportOptions(msgspec.Struct):
    """How to import. strict: all rows or none; type "false" is the same. retry: attempts after the first one.
    batch_type: what is called is outbound, whichever it says."""

    strict: bool = False
    type: bool = True
    retry: Annotated[int, Meta(ge=0, le=98)] | None = None
    batch_type: Literal["outbound", "mixed"] = "outbound"


class ImportErrors(msgspec.Struct):
    """import_id: as calls-batch-import answered it."""

    import_id: UUID


@edge_function("POST", "GET", failure="Failed to import contacts", has_large_body=True)
async def calls_batch_import(request: Request) -> Response:
    """Import a file of contacts into a batch, or list what was wrong with one."""
    caller = await verify_jwt(request)
    if request.method == "POST":
        return await _import(request, caller)
    return await _list_errors(request, caller)


async def _import(request: Request, caller: Caller) -> Response:
    # Whoever may not import is told so before the file, which may take minutes to send and to read.
    await run_procedure(request, caller, "check_import")
    async with read_form(request, max_bytes=request.app.state.settings.max_upload_bytes) as form:
        how, batch = _read_fields(form)
        contacts = await _read_file(request, form)
    try:
        if how.strict or not how.type:
            await _check(request, caller, contacts)
        answer = await _import_contacts(request, caller, contacts, batch)
    finally:
        contacts.close()
    if not answer["success"]:
        return reply(answer, 422)
    return reply(answer, 201 if answer["created"] else 200)


async def _import_contacts(
    request: Request, caller: Caller, contacts: ContactFile, batch: dict[str, Any]
) -> dict[str, Any]:
    """Import group by group, from where the import stands. An error that stops it says how far it came."""
    key = request.headers.get("idempotency-key")
    progress = await run_procedure(
        request, caller, "begin_import", file_hash=contacts.sha256, idempotency_key=key, **batch
    )
    ids = {name: progress[name] for name in ("batch_id", "import_id")}
    try:
        for group in contacts.groups:
            if group.last_row > progress["last_row"]:
                rows = msgspec.Raw(await run_sync(contacts.read, group))
                progress = await run_procedure(request, caller, "import_contacts", **ids, rows=rows)
        answer: dict[str, Any] = await run_procedure(request, caller, "finish_import", **ids)
    except FunctionError as error:
        error.details = {name: value for name, value in progress.items() if name != "answer"} | error.details
        raise
    return answer


async def _check(request: Request, caller: Caller, contacts: ContactFile) -> None:
    """Raises 422 when any row is invalid."""
    count = 0
    errors: list[Any] = []
    for group in contacts.groups:
        rows = msgspec.Raw(await run_sync(contacts.read, group))
        found = await run_procedure(request, caller, "check_import", rows=rows)
        count += found["invalid"]
        errors += found["errors"][: _ERRORS_SHOWN - len(errors)]
    if count:
        message = f"{count} of {contacts.rows} rows are invalid"
        details = {"invalid": count, "error_count": count, "errors": errors}
        raise FunctionError(422, "rows_invalid", message, details=details)


def _read_fields(form: FormData) -> tuple[ImportOptions, dict[str, Any]]:
    """How to import, and the arguments that say into which batch. Raises 400."""
    fields: dict[str, Any] = {}
    for field, value in form.multi_items():
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", field).lower()
        name = _ALIASES.get(name, name)
        if name in fields:
            raise FunctionError(400, "invalid_body", f"{name} is given twice")
        if isinstance(value, str) and value:
            fields[name] = value
    try:
        for name in fields.keys() & _JSON_FIELDS:
            fields[name] = msgspec.json.decode(fields[name])
        how = msgspec.convert(fields, ImportOptions, strict=False)
        batch = msgspec.convert(fields, ImportTarget, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(error, "invalid_body") from None
    except (msgspec.DecodeError, RecursionError):
        raise FunctionError(400, "invalid_body", f"{', '.join(_JSON_FIELDS)} must be JSON") from None
    if batch.max_attempts is None and how.retry is not None:
        batch.max_attempts = how.retry + 1
    return how, given(batch)


async def _read_file(request: Request, form: FormData) -> ContactFile:
    """The form's file, read. Raises 400."""
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise FunctionError(400, "file_required", "file is required")
    try:
        async with request.app.state.readers:
            return await read_apart(file.file, file.filename or "")
    except FileError as error:
        raise FunctionError(400, error.code, str(error)) from None


async def _list_errors(request: Request, caller: Caller) -> Response:
    query = read_query(request, ImportErrors)

    async def errors_after(row: int) -> list[dict[str, Any]]:
        found = await run_procedure(request, caller, "list_import_errors", import_id=query.import_id, after_row=row)
        errors: list[dict[str, Any]] = found["errors"]
        return errors

    first = await errors_after(0)

    async def lines() -> AsyncIterator[bytes]:
        yield ERRORS_HEADER
        errors = first
        while errors:
            yield error_lines(errors)
            errors = await errors_after(errors[-1]["row"])

    headers = {
        "Cache-Control": "no-store",
        "Content-Disposition": f'attachment; filename="import-errors-{query.import_id}.csv"',
        "X-Content-Type-Options": "nosniff",
    }
    media_type = "text/csv; charset=utf-8"
    if request.method == "HEAD":
        return Response(headers=headers, media_type=media_type)
    return StreamingResponse(lines(), headers=headers, media_type=media_type)
