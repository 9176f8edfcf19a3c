"""Call one stored procedure as the caller, in one round trip. No function speaks SQL but here.

Two transports answer alike: Postgres itself, and PostgREST. A refusal of a procedure (sqlstate
PTxyz, made in SQL) becomes a FunctionError with HTTP status xyz.
"""

from __future__ import annotations

import json
import select
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, Self

import anyio
import msgspec
import psycopg
from psycopg import sql
from psycopg.abc import PQGen
from psycopg.generators import send
from psycopg.pq import DiagnosticField
from psycopg.pq.abc import PGresult
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
from starlette.requests import Request

from .auth import Caller
from .connection_limiter import CURRENT_AGENCY, ConnectionLimiter, no_connection
from .errors import FunctionError, unavailable
from .log import logger
from .settings import Settings
from .telemetry import NO_TELEMETRY, Telemetry

# Postgres asks for these to be tried again: nothing was wrong, two transactions met.
_RETRY_SQLSTATES = ("40001", "40P01")
# Connection exceptions, too many connections, shutdown and restart.
UNAVAILABLE_SQLSTATES = ("08", "53", "57P")
# A lock that another transaction holds; that of a batch is refused as batch_busy, in SQL.
_LOCKED_SQLSTATE = "55P03"
# Postgres refuses JSON that holds half a surrogate pair, a NUL, a number too large or too many levels.
_JSON_SQLSTATES = ("22P02", "22P05", "22003", "54001")


class Database(Protocol):
    """Where the procedures are."""

    async def run(self, caller: Caller, procedure: str, arguments: dict[str, Any]) -> list[Any]:
        """The rows that public.<procedure> returns, as JSON values. Raises FunctionError for what it
        refuses and 503 when the database is out of reach; anything else is raised as it is."""

    async def ping(self) -> None:
        """Return if the database answers. Raises 503."""

    async def close(self) -> None:
        """Let the connections go."""

    def pool_stats(self) -> dict[str, int]:
        """The pool of connections in the words of psycopg_pool; nothing as long as, or where, there is none."""


async def run_procedure(request: Request, caller: Caller, procedure: str, **arguments: Any) -> Any:
    """The row that public.<procedure> answers this caller."""
    rows = await request.app.state.database.run(caller, procedure, arguments)
    return rows[0]


def connect_database(settings: Settings, telemetry: Telemetry = NO_TELEMETRY) -> Database:
    """The database of the settings; connects when first used."""
    if settings.transport == "postgrest":
        return PostgrestDatabase(settings, telemetry)
    return PostgresDatabase(settings, telemetry)


class _Pipeline(psycopg.AsyncPipeline):
    """psycopg's, with two faults mended.

    It sends no Flush after its Sync, which flushes already. PgBouncer in transaction mode may read the Flush after the
    server's ReadyForQuery; it then gives the client a server connection again, and takes it back only after the
    client's next request.

    It expects an error and the Sync when the server refuses to commit. psycopg expects the Sync alone: it raises
    IndexError when both have come, and gives the connection up otherwise.
    """

    def _process_results(self, queued: Any, results: list[PGresult]) -> None:
        (first, *_) = results
        if queued is None and first.error_field(DiagnosticField.SEVERITY_NONLOCALIZED) == b"ERROR":
            self.result_queue.appendleft(None)
        super()._process_results(queued, results)

    def _fetch_gen(self, *, flush: bool) -> PQGen[None]:
        if flush:
            yield from send(self.pgconn)  # a large request leaves in parts
        yield from super()._fetch_gen(flush=False)


class _Connection(psycopg.AsyncConnection[Any]):
    """Says in the log why it could not be made: whoever waits for one only learns that there is none."""

    is_unconfirmed = False
    """Whether a commit gave up waiting for the synchronous standby."""

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Self:
        try:
            connection = await super().connect(*args, **kwargs)
        except psycopg.OperationalError as error:
            # Hosts, users and reasons. An error about a URL that cannot be parsed may quote its password.
            reason = " ".join(str(error).split())
            logger.warning("no connection to the database", extra={"fields": {"reason": reason}})
            raise
        connection.add_notice_handler(connection._read_notice)
        return connection

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[psycopg.AsyncPipeline]:
        """A pipeline that is not nested, and whose rows are read after its end."""
        self._pipeline = _Pipeline(self)
        async with super().pipeline() as pipeline:
            yield pipeline

    def _read_notice(self, notice: psycopg.errors.Diagnostic) -> None:
        if gave_up_standby(notice):
            self.is_unconfirmed = True


class PostgresDatabase:
    """The procedures, by a pool of Postgres connections.

    Every call is one pipeline, hence one round trip and one implicit transaction: isolation, role, claims
    and procedure travel together. The settings last for the transaction only: nothing of one caller
    is left for the next, behind a transaction pooler too.
    """

    def __init__(self, settings: Settings, telemetry: Telemetry = NO_TELEMETRY) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._limiter = ConnectionLimiter(settings, self._find_agency)
        # Postgres ends what takes too long. This is for one that cannot be heard any more.
        self._deadline_s = settings.statement_timeout_ms / 1000 + settings.pool_timeout_s
        self._pool: AsyncConnectionPool[_Connection] | None = None

    async def run(self, caller: Caller, procedure: str, arguments: dict[str, Any]) -> list[Any]:
        values = {name: sql_value(value) for name, value in arguments.items()}
        for last_try in (False, True):
            with self._telemetry.operation("procedure", procedure) as operation:
                try:
                    return await self._execute(caller, procedure, values)
                except psycopg.Error as error:
                    operation.details["sqlstate"] = error.sqlstate or ""
                    if last_try or error.sqlstate not in _RETRY_SQLSTATES:
                        _check_json(error.sqlstate, arguments)
                        raise _translate(error) from None
                    operation.outcome = "retry"
        raise AssertionError("unreachable")

    async def _execute(self, caller: Caller, procedure: str, arguments: dict[str, Any]) -> list[Any]:
        try:
            # A procedure that has begun runs to its end, even if the client has gone: its connection stays clean.
            async with self._connection(self._limiter.slot(caller, procedure, arguments)) as connection:
                connection.is_unconfirmed = False
                with anyio.fail_after(self._deadline_s, shield=True):
                    async with connection.pipeline():
                        # Stricter, as the database may have it by default, is a conflict wherever two meet at a row.
                        await connection.execute("set transaction_isolation to 'read committed'")
                        await connection.execute(
                            "select set_config('role', %s, true), set_config('request.jwt.claims', %s, true),"
                            " set_config('request.headers', %s, true), set_config('statement_timeout', %s, true),"
                            " set_config('lock_timeout', %s, true)",
                            [
                                caller.role,
                                json.dumps(caller.claims),
                                json.dumps({"x-request-id": caller.request_id}),
                                str(self._settings.statement_timeout_ms),
                                str(self._lock_timeout_ms(caller)),
                            ],
                        )
                        cursor = await connection.execute(procedure_call(procedure, arguments), arguments)
                    rows = await cursor.fetchall()
                if connection.is_unconfirmed:
                    raise unavailable("not_confirmed", "The synchronous standby has not confirmed this; try again")
        except (PoolTimeout, TooManyRequests, PoolClosed):
            raise no_connection() from None
        except TimeoutError:
            raise unavailable("database_unavailable", "The database does not answer; try again") from None
        return [row[0] for row in rows]

    async def _find_agency(self, caller: Caller) -> Any:
        return (await self.run(caller, CURRENT_AGENCY, {}))[0]

    def _lock_timeout_ms(self, caller: Caller) -> int:
        is_service = caller.role == "service_role"
        return self._settings.service_lock_timeout_ms if is_service else self._settings.lock_timeout_ms

    async def ping(self) -> None:
        try:
            async with self._connection(self._limiter.ping()) as connection:
                with anyio.fail_after(self._settings.pool_timeout_s):
                    await connection.execute("select 1")
        except (psycopg.OperationalError, PoolTimeout, TooManyRequests, PoolClosed, TimeoutError):
            raise unavailable("database_unavailable", "The database does not answer") from None

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()

    @asynccontextmanager
    async def _connection(self, turn: AbstractAsyncContextManager[None]) -> AsyncIterator[_Connection]:
        # Not by the pool's `check`, which sleeps for a second or more after each connection it refuses.
        pool = await self._open_pool()
        with self._telemetry.operation("connection", "postgres") as wait:
            async with turn:
                for stale_ones_left in range(self._settings.pool_size, -1, -1):
                    async with pool.connection() as connection:
                        if not (stale_ones_left and _is_closed_by_server(connection)):
                            wait.end()
                            yield connection
                            return
                        await connection.close()

    def pool_stats(self) -> dict[str, int]:
        if self._pool is None:
            return {}
        stats = self._pool.get_stats()
        return {**stats, "requests_waiting": stats.get("requests_waiting", 0) + self._limiter.waiting}

    async def _open_pool(self) -> AsyncConnectionPool[_Connection]:
        # Made on first use: serverless platforms start the app where no database is needed.
        if self._pool is None:
            self._pool = AsyncConnectionPool(
                self._settings.database_url or "",
                connection_class=_Connection,
                kwargs={
                    "autocommit": True,
                    "prepare_threshold": None,
                    "connect_timeout": 5,
                    "tcp_user_timeout": 10_000,  # a server that is gone is no longer waited for
                    "application_name": "lastcall",
                },
                min_size=0,
                max_size=self._settings.pool_size,
                max_waiting=self._settings.pool_max_waiting,
                timeout=self._settings.pool_timeout_s,
                # Give up soon: the next request tries again at once, with no backoff to wait for.
                reconnect_timeout=1.0,
                open=False,
            )
            await self._pool.open()
        return self._pool


def gave_up_standby(notice: psycopg.errors.Diagnostic) -> bool:
    """Whether the notice says that a commit gave up waiting for the synchronous standby: the wait was cancelled.
    PostgreSQL reports success beside this warning, whose text depends on the server's language."""
    return notice.source_function == "SyncRepWaitForLSN"


def procedure_call(procedure: str, arguments: Iterable[str]) -> sql.Composed:
    """The statement that calls public.<procedure> with arguments of these names, each row a JSON value."""
    names = sql.SQL(", ").join(
        sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in arguments
    )
    return sql.SQL("select to_json(r) from public.{}({}) r").format(sql.Identifier(procedure), names)


def sql_value(value: Any) -> Any:
    """Objects and lists of objects are jsonb; lists of numbers or strings are arrays."""
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode()  # JSON as it came: not taken apart on its way
    is_json = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))
    return Jsonb(value) if is_json else value


def _check_json(sqlstate: str | None, arguments: dict[str, Any]) -> None:
    """Raises 400 when Postgres could not read an argument that was passed on as it came."""
    if sqlstate in _JSON_SQLSTATES and any(isinstance(value, msgspec.Raw) for value in arguments.values()):
        raise _invalid_json() from None


def _invalid_json() -> FunctionError:
    return FunctionError(400, "invalid_body", "Body holds text or a number that cannot be stored")


def _is_closed_by_server(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Known without a round trip: an idle connection has nothing to read unless it was told goodbye."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _translate(error: psycopg.Error) -> Exception:
    """A refusal or an outage as FunctionError; any other error as it is."""
    sqlstate = error.sqlstate
    if sqlstate is None:
        return (
            unavailable("database_unavailable", "The database is out of reach; try again")
            if isinstance(error, psycopg.OperationalError)
            else error
        )
    if sqlstate.startswith("PT"):
        return _refusal(sqlstate, error.diag.message_primary, error.diag.message_detail)
    if sqlstate.startswith(UNAVAILABLE_SQLSTATES):
        return unavailable("database_unavailable", "The database is out of reach; try again")
    if sqlstate == _LOCKED_SQLSTATE:
        return _locked()
    return error


def _locked() -> FunctionError:
    return unavailable("busy", "Another request holds what this one needs; try again")


def _refusal(sqlstate: str, message: str | None, detail: str | None) -> FunctionError:
    status = int(sqlstate[2:])
    details = json.loads(detail or "{}")
    code = details.pop("code", "refused")
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if "retry_after" in details:
        headers["Retry-After"] = str(details["retry_after"])
    return FunctionError(status, code, message or "Refused", headers, details)


class PostgrestDatabase:
    """The procedures, by the project's PostgREST with the caller's own token."""

    def __init__(self, settings: Settings, telemetry: Telemetry = NO_TELEMETRY) -> None:
        import httpx  # only here: what this transport needs, the other one does not load

        self._telemetry = telemetry
        self._url = f"{settings.supabase_url}/rest/v1"
        self._headers = {"apikey": settings.publishable_key or ""}
        self._limiter = ConnectionLimiter(settings, self._find_agency)
        timeout = httpx.Timeout(settings.statement_timeout_ms / 1000, connect=5, pool=settings.pool_timeout_s)
        limits = httpx.Limits(max_connections=settings.pool_size)
        self._http = httpx.AsyncClient(base_url=self._url, timeout=timeout, limits=limits)

    async def run(self, caller: Caller, procedure: str, arguments: dict[str, Any]) -> list[Any]:
        import httpx
        from postgrest import APIError, AsyncPostgrestClient

        headers = {
            # The project's gateway takes a secret key in both places, or in none.
            "apikey": caller.token if caller.role == "service_role" else self._headers["apikey"],
            "Authorization": f"Bearer {caller.token}",
            "X-Request-Id": caller.request_id,
        }
        client = AsyncPostgrestClient(self._url, headers=headers, http_client=self._http, retry_enabled=False)
        # Through JSON: an argument may be JSON as it came.
        try:
            given: dict[str, Any] = msgspec.json.decode(
                msgspec.json.encode({name: value for name, value in arguments.items() if value is not None})
            )
        except msgspec.DecodeError:
            raise _invalid_json() from None
        for last_try in (False, True):
            with self._telemetry.operation("procedure", procedure) as operation:
                try:
                    async with self._limiter.slot(caller, procedure, arguments):
                        data = (await client.rpc(procedure, given).execute()).data
                    return data if isinstance(data, list) else [data]
                except httpx.TransportError:
                    raise unavailable("database_unavailable", "The database is out of reach; try again") from None
                except APIError as error:
                    operation.details["sqlstate"] = str(error.code or "")
                    if last_try or error.code not in _RETRY_SQLSTATES:
                        _check_json(error.code, arguments)
                        raise _translate_postgrest(error) from error
                    operation.outcome = "retry"
        raise AssertionError("unreachable")

    async def _find_agency(self, caller: Caller) -> Any:
        return (await self.run(caller, CURRENT_AGENCY, {}))[0]

    async def ping(self) -> None:
        import httpx

        try:
            async with self._limiter.ping():
                response = await self._http.get("/", headers=self._headers)
        except httpx.TransportError:
            raise unavailable("database_unavailable", "The database does not answer") from None
        if response.status_code >= 500:
            raise unavailable("database_unavailable", "The database does not answer")

    async def close(self) -> None:
        await self._http.aclose()

    def pool_stats(self) -> dict[str, int]:
        return {}


def _translate_postgrest(error: Any) -> Exception:
    code = str(error.code or "")
    if code.startswith("PT"):
        return _refusal(code, error.message, error.details)
    if code == _LOCKED_SQLSTATE:
        return _locked()
    if code.startswith("PGRST30"):
        return FunctionError(401, "unauthorized", "Invalid token", {"WWW-Authenticate": "Bearer"})
    # PGRST00x: PostgREST has no database connection. 502 to 504: nor do we have PostgREST.
    if code.startswith(("PGRST00", *UNAVAILABLE_SQLSTATES)) or code in ("502", "503", "504"):
        return unavailable("database_unavailable", "The database is out of reach; try again")
    return error  # type: ignore[no-any-return]
