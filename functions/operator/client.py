"""The service as the operator's commands use it: by HTTP as a user, or at the SQL console as an admin."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlencode

import httpx2
import psycopg

from .._shared.contact_file import ContactFile, FileError, read_contacts
from .._shared.contacts_csv import ERRORS_HEADER, HEADER, contact_lines, error_lines
from .._shared.database import UNAVAILABLE_SQLSTATES, gave_up_standby, procedure_call, sql_value
from ..local import CommandError
from .session import (
    CONNECT_TIMEOUT_S,
    TIMEOUT_S,
    NotLoggedInError,
    OutOfReachError,
    Session,
    close_client,
    supabase_client,
)

Answer = dict[str, Any]

CHANGES = {
    "cancel_batch": "calls-batch-cancel",
    "pause_batch": "calls-batch-pause",
    "resume_batch": "calls-batch-resume",
    "retry_batch": "calls-batch-retry",
    "skip_contacts": "calls-batch-skip",
    "opt_out": "calls-opt-out",
    "hold_calls": "calls-hold",
    "lift_hold": "calls-hold-lift",
}
"""The procedures that change something, and their functions, whose bodies have the procedures' arguments."""

# An import answers when all its rows are in.
_IMPORT_TIMEOUT_S = 3600.0


class RefusedError(CommandError):
    """The service answered, and did not do it. code: its word for why. answer: all that it said."""

    exit_status = 1

    def __init__(self, message: str, code: str, answer: Answer | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.answer = answer or {}


class Client(Protocol):
    """The service. Batches are named by UUID. key: the idempotency key, with which a request may be repeated.
    All raise CommandError: RefusedError, NotLoggedInError, OutOfReachError."""

    def list_batches(self, *, status: str | None = None, limit: int = 100, after: str | None = None) -> Answer:
        """A page of calls-batch-list."""

    def get_batch(self, batch_id: str) -> Answer:
        """As calls-batch-get shows it."""

    def list_events(self, batch_id: str, *, after: str | None = None) -> Answer:
        """A page of calls-batch-events."""

    def list_holds(self, *, include_lifted: bool) -> Answer:
        """As calls-hold-list shows them."""

    def change(self, procedure: str, *, key: str | None = None, **given: Any) -> Answer:
        """Call a procedure of CHANGES. given: its arguments."""

    def stop(self, batch_id: str, *, key: str, skip_remaining: bool, end_calls: bool, reason: str | None) -> Answer:
        """Stop the batch; gives batch_id and status at least."""

    def export(self, batch_id: str, status: str | None) -> Iterator[bytes]:
        """The batch's contacts as CSV, piece by piece."""

    def import_file(self, file: BinaryIO, name: str, batch: Mapping[str, Any], *, key: str, strict: bool) -> Answer:
        """Import contacts from a file of that name into a batch. batch: its batch_id, or a new one's settings.
        strict: all rows or none."""

    def import_errors(self, import_id: str) -> Iterator[bytes]:
        """The invalid rows of an import as CSV, piece by piece."""

    def close(self) -> None:
        """Let the connections go."""


class HttpClient:
    """The functions of a Supabase project, through its client, or of the app where it serves them itself."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._supabase = supabase_client(session.url, session.key)
        # The Supabase client's invoke holds what it gets, and what it sends, in memory as a whole, and sends no forms:
        # export and import go past it, to the same addresses with the same headers. So does stop-calling, whose
        # address in the app is not under /functions/v1.
        self._http = httpx2.Client(timeout=httpx2.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S))

    def list_batches(self, *, status: str | None = None, limit: int = 100, after: str | None = None) -> Answer:
        return self._invoke("GET", "calls-batch-list", {"status": status, "limit": limit, "after": after})

    def get_batch(self, batch_id: str) -> Answer:
        return self._invoke("GET", "calls-batch-get", {"batch_id": batch_id, "contact_limit": 1})

    def list_events(self, batch_id: str, *, after: str | None = None) -> Answer:
        return self._invoke("GET", "calls-batch-events", {"batch_id": batch_id, "limit": 200, "after": after})

    def list_holds(self, *, include_lifted: bool) -> Answer:
        return self._invoke("GET", "calls-hold-list", {"include_lifted": str(include_lifted).lower()})

    def change(self, procedure: str, *, key: str | None = None, **given: Any) -> Answer:
        return self._invoke("POST", CHANGES[procedure], given, key)

    def stop(self, batch_id: str, *, key: str, skip_remaining: bool, end_calls: bool, reason: str | None) -> Answer:
        user_id = self.get_batch(batch_id)["batch"]["user_id"]
        if user_id is None:
            raise CommandError(
                "by HTTP a stop names the user responsible for the batch, and this one has none: use --sql"
            )
        app = self._session.app_url
        url = f"{app}/api/call/stop-calling" if app else self._function("stop-calling")
        body = {
            "batchId": batch_id,
            "userId": user_id,
            "skipRemaining": skip_remaining,
            "endCalls": end_calls,
            "reason": reason,
        }
        headers = {**self._headers(), "Idempotency-Key": key}
        with self._stream("POST", url, headers, json=body) as response:
            data = _json(response.read())["data"]
        return {"batch_id": data["batchId"], "status": data["status"]}

    def export(self, batch_id: str, status: str | None) -> Iterator[bytes]:
        query = _given({"batch_id": batch_id, "contact_status": status})
        with self._stream("GET", self._function("calls-batch-export"), self._headers(), params=query) as response:
            yield from response.iter_bytes()

    def import_file(self, file: BinaryIO, name: str, batch: Mapping[str, Any], *, key: str, strict: bool) -> Answer:
        file.seek(0)
        form = {**batch, "strict": "true" if strict else "false"}
        headers = {**self._headers(), "Idempotency-Key": key}
        with self._stream(
            "POST",
            self._function("calls-batch-import"),
            headers,
            data=form,
            files={"file": (name, file)},
            timeout=httpx2.Timeout(_IMPORT_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        ) as response:
            return _json(response.read())

    def import_errors(self, import_id: str) -> Iterator[bytes]:
        query = {"import_id": import_id}
        with self._stream("GET", self._function("calls-batch-import"), self._headers(), params=query) as response:
            yield from response.iter_bytes()

    def close(self) -> None:
        self._http.close()
        close_client(self._supabase)
        self._session.close()

    def _invoke(self, method: str, function: str, arguments: Mapping[str, Any], key: str | None = None) -> Answer:
        from supabase_functions.errors import FunctionsHttpError, FunctionsRelayError

        given = _given(arguments)
        options: dict[str, Any] = {"method": method, "headers": _given({"Idempotency-Key": key})}
        if method == "GET":
            function = f"{function}?{urlencode(given)}"
        else:
            options["body"] = given
        self._supabase.functions.set_auth(self._session.token())
        try:
            with self._reaching():
                return _json(bytes(self._supabase.functions.invoke(function, options)))
        except FunctionsHttpError as error:
            # Its message is the `error` of our body. The code is in the response, which only its cause has.
            response = getattr(error.__cause__, "response", None)
            if response is None:
                raise _refusal(error.status, {}, error.message.encode()) from None
            raise _refusal(error.status, response.headers, response.content) from None
        except FunctionsRelayError as error:
            raise OutOfReachError(
                f"{self._session.url} does not run its functions: {error}", may_be_done=True
            ) from None

    @contextmanager
    def _stream(self, method: str, url: str, headers: dict[str, str], **request: Any) -> Iterator[httpx2.Response]:
        """A response that is no error; its body is still to be read."""
        with self._reaching(), self._http.stream(method, url, headers=headers, **request) as response:
            if not response.is_success:
                raise _refusal(response.status_code, response.headers, response.read())
            yield response

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """A lost connection, of either HTTP library, is OutOfReachError."""
        import httpx  # the Supabase client's

        try:
            yield
        except (httpx.TransportError, httpx2.TransportError) as error:
            never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx2.ConnectError, httpx2.ConnectTimeout)
            reason = str(error) or type(error).__name__
            raise OutOfReachError(
                f"{self._session.url} is out of reach: {reason}", may_be_done=not isinstance(error, never_sent)
            ) from None

    def _function(self, name: str) -> str:
        return f"{self._session.url}/functions/v1/{name}"

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._session.token()}", **_given({"apikey": self._session.key})}


class SqlClient:
    """The procedures, at the SQL console: DATABASE_URL must be of a member of lastcall_admin."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._connection: psycopg.Connection[Any] | None = None
        self._is_unconfirmed = False
        """Whether the last commit gave up waiting for the synchronous standby."""

    def list_batches(self, *, status: str | None = None, limit: int = 100, after: str | None = None) -> Answer:
        return self._call("list_batches", status=status, page_size=limit, after=after)

    def get_batch(self, batch_id: str) -> Answer:
        return self._call("get_batch", batch_id=batch_id, contact_limit=1)

    def list_events(self, batch_id: str, *, after: str | None = None) -> Answer:
        return self._call("list_batch_events", batch_id=batch_id, page_size=200, after=after)

    def list_holds(self, *, include_lifted: bool) -> Answer:
        return self._call("list_holds", include_lifted=include_lifted)

    def change(self, procedure: str, *, key: str | None = None, **given: Any) -> Answer:
        return self._call(procedure, idempotency_key=key, **given)

    def stop(self, batch_id: str, *, key: str, skip_remaining: bool, end_calls: bool, reason: str | None) -> Answer:
        return self._call(
            "stop_batch",
            batch_id=batch_id,
            skip_remaining=skip_remaining,
            end_calls=end_calls,
            idempotency_key=key,
            reason=reason,
        )

    def export(self, batch_id: str, status: str | None) -> Iterator[bytes]:
        after = None
        yield HEADER
        while True:
            page = self._call("export_contacts", batch_id=batch_id, after=after, contact_status=status)
            yield contact_lines(page["contacts"])
            after = page["next_cursor"]
            if after is None:
                return

    def import_file(self, file: BinaryIO, name: str, batch: Mapping[str, Any], *, key: str, strict: bool) -> Answer:
        try:
            contacts = read_contacts(file, name)
        except FileError as error:
            raise RefusedError(str(error), error.code) from None
        with closing(contacts):
            if strict:
                self._check_rows(contacts)
            progress = self._call("begin_import", file_hash=contacts.sha256, idempotency_key=key, **batch)
            ids = {name: progress[name] for name in ("batch_id", "import_id")}
            for group in contacts.groups:
                if group.last_row > progress["last_row"]:
                    progress = self._call("import_contacts", **ids, rows=contacts.read(group).decode())
            answer = self._call("finish_import", **ids)
        if not answer["success"]:
            raise RefusedError(answer["error"], answer["code"], answer)
        return answer

    def _check_rows(self, contacts: ContactFile) -> None:
        found = [self._call("check_import", rows=contacts.read(group).decode()) for group in contacts.groups]
        invalid = sum(group["invalid"] for group in found)
        if invalid:
            errors = [error for group in found for error in group["errors"]]
            raise RefusedError(f"{invalid} of {contacts.rows} rows are invalid", "rows_invalid", {"errors": errors})

    def import_errors(self, import_id: str) -> Iterator[bytes]:
        yield ERRORS_HEADER
        after_row = 0
        while errors := self._call("list_import_errors", import_id=import_id, after_row=after_row)["errors"]:
            yield error_lines(errors)
            after_row = errors[-1]["row"]

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _call(self, procedure: str, **arguments: Any) -> Answer:
        given = {name: sql_value(value) for name, value in _given(arguments).items()}
        connection = self._connect()
        self._is_unconfirmed = False
        try:
            # One transaction: holds and opt-outs need this isolation, whatever the database's default is.
            with connection.pipeline():
                connection.execute("set transaction_isolation to 'read committed'")
                cursor = connection.execute(procedure_call(procedure, given), given)
            row = cursor.fetchone()
        except psycopg.Error as error:
            if connection.closed:
                self.close()
            raise _sql_refusal(error) from None
        if self._is_unconfirmed:
            raise OutOfReachError("the synchronous standby has not confirmed the change", may_be_done=True)
        assert row is not None
        answer: Answer = row[0]
        return answer

    def _connect(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            try:
                self._connection = psycopg.connect(
                    self._url,
                    autocommit=True,
                    prepare_threshold=None,  # there may be a transaction pooler in between
                    connect_timeout=int(CONNECT_TIMEOUT_S),
                    application_name="lastcall",
                )
            except psycopg.OperationalError as error:
                raise OutOfReachError(f"the database is out of reach: {error}", may_be_done=False) from None
            except psycopg.Error as error:
                raise CommandError(f"DATABASE_URL: {error}") from None
            self._connection.add_notice_handler(self._read_notice)
        return self._connection

    def _read_notice(self, notice: psycopg.errors.Diagnostic) -> None:
        if gave_up_standby(notice):
            self._is_unconfirmed = True


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are given: the others have the service's defaults."""
    return {name: value for name, value in arguments.items() if value is not None}


def _json(body: bytes) -> Answer:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise RefusedError("this URL does not answer as lastcall does", "unknown_answer")
    return answer


def _refusal(status: int, headers: Mapping[str, str], body: bytes) -> CommandError:
    """The error that an answer without success means."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = {}
    if not isinstance(answer, dict):
        answer = {}
    message = str(answer.get("error") or answer.get("errorMessage") or answer.get("message") or f"HTTP status {status}")
    if status in (502, 503, 504):
        # The functions say 503, too, when they lost the database in mid-request.
        retry_after = headers.get("retry-after", "")
        wait = float(retry_after) if retry_after.isdigit() else 0.0
        return OutOfReachError(message, may_be_done=True, retry_after_s=wait)
    if status == 401:
        return NotLoggedInError(message)
    return RefusedError(message, str(answer.get("code") or status), answer)


def _sql_refusal(error: psycopg.Error) -> CommandError:
    sqlstate = error.sqlstate or ""
    message = error.diag.message_primary or str(error)
    if sqlstate.startswith("PT"):
        answer = {"error": message, **json.loads(error.diag.message_detail or "{}")}
        if sqlstate == "PT503":  # asked again, as by HTTP
            return OutOfReachError(message, may_be_done=True, retry_after_s=answer.get("retry_after", 0))
        return RefusedError(message, str(answer.get("code")), answer)
    if not sqlstate or sqlstate.startswith(UNAVAILABLE_SQLSTATES):
        return OutOfReachError(f"the database is out of reach: {message}", may_be_done=True)
    if sqlstate == "42501":
        return CommandError(f"DATABASE_URL must be of a member of lastcall_admin: {message}")
    if sqlstate in ("42883", "3F000"):
        return CommandError(
            f"lastcall is not in this database, or of another release: {message}; see `lastcall migrate`"
        )
    return RefusedError(message, sqlstate)
