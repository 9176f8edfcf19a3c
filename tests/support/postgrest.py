"""A stand-in for PostgREST, which is in no package registry: for calls of procedures only.

It does what PostgREST's documentation says of POST /rpc/<name>: verify the token, become its role
with its claims for one transaction, call the function with the body's named arguments, and answer
with the result or with the error under the status of its SQLSTATE. The transaction has the settings of the role, and
over these some of the function ("Impersonated Role Settings", "Function Settings"). It is not PostgREST: no tables,
no filters, no media types, no schema cache to reload, one agreed secret.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import jwt
import psycopg
from anyio.to_thread import run_sync
from psycopg import IsolationLevel, sql
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from .database import Connection, connect
from .tokens import SECRET

PUBLISHABLE_KEY = "sb_publishable_for_tests"
HOISTED = ("statement_timeout", "plan_filter.statement_cost_limit", "default_transaction_isolation")
"""The settings of a function that count for its transaction: PostgREST's default of db-hoisted-tx-settings."""
_ISOLATION = {
    "repeatable read": IsolationLevel.REPEATABLE_READ,
    "serializable": IsolationLevel.SERIALIZABLE,
}


def postgrest(database_url: str) -> Starlette:
    """The stand-in for a database, which it enters as its authenticator."""
    connections = _Connections(database_url)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        connections.close()

    async def rpc(request: Request) -> JSONResponse:
        body = await request.body()
        if not _is_key(request.headers.get("apikey", "")):
            # The gateway in front of PostgREST.
            return JSONResponse({"message": "Invalid API key"}, 401)
        try:
            claims = _claims(request)
        except jwt.PyJWTError as error:
            return _error(401, "PGRST301", str(error))
        role = claims.get("role", "anon")
        try:
            given = json.loads(body or b"{}")
            return JSONResponse(await run_sync(_call, connections, role, claims, request, given))
        except LookupError:
            return _error(404, "PGRST202", "Could not find the function in the schema cache")
        except psycopg.OperationalError as error:
            if error.sqlstate is None:
                return _error(503, "PGRST000", "Could not connect with the database")
            return _database_error(error, role)
        except psycopg.Error as error:
            return _database_error(error, role)

    routes = [Route("/rest/v1/rpc/{name}", rpc, methods=["POST"]), Route("/rest/v1/", _root)]
    return Starlette(routes=routes, lifespan=lifespan)


class _Connections:
    """Connections that are kept, as PostgREST's pool keeps them: the next request does not log in again."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[Connection] = []

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        connection = self._take() or connect(self._url, prepare_threshold=None)
        try:
            yield connection
        finally:
            if not connection.closed:
                self._idle.append(connection)

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            try:
                connection.execute("")
            except psycopg.OperationalError:
                connection.close()  # the server has ended it
            else:
                return connection
        return None

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


async def _root(_request: Request) -> JSONResponse:
    return JSONResponse({"swagger": "2.0"})


def _is_key(key: str) -> bool:
    """The publishable key, or a service_role key: a token of that role."""
    try:
        return (
            key == PUBLISHABLE_KEY
            or jwt.decode(key, SECRET, ["HS256"], audience="authenticated")["role"] == "service_role"
        )
    except jwt.PyJWTError:
        return False


def _claims(request: Request) -> dict[str, Any]:
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not token or token == PUBLISHABLE_KEY:
        return {"role": "anon"}
    return jwt.decode(token, SECRET, algorithms=["HS256"], audience="authenticated")


def _call(
    connections: _Connections, role: str, claims: dict[str, Any], request: Request, arguments: dict[str, Any]
) -> Any:
    with connections.connection() as connection:
        function = connection.execute(
            "select p.oid, p.proretset, p.proconfig, array(select format('%%I %%s', a.name, format_type(a.type, null))"
            "  from unnest(p.proargnames[1:p.pronargs], p.proargtypes::oid[]) as a (name, type)"
            "  where a.name = any (%s)) as given"
            " from pg_proc p where p.pronamespace = 'public'::regnamespace and p.proname = %s",
            [list(arguments), request.path_params["name"]],
        ).fetchone()
        if function is None or len(function["given"]) != len(arguments):
            raise LookupError
        hoisted = {name: value for name, value in _settings(function["proconfig"]).items() if name in HOISTED}
        settings = _role_settings(connection, role) | hoisted
        # The default of the database does not count.
        isolation = settings.pop("default_transaction_isolation", "read committed")
        connection.isolation_level = _ISOLATION.get(isolation, IsolationLevel.READ_COMMITTED)
        with connection.transaction():
            headers = {name: value for name, value in request.headers.items() if name != "authorization"}
            connection.execute(
                "select set_config('role', %s, true), set_config('request.jwt.claims', %s, true),"
                " set_config('request.headers', %s, true)",
                [role, json.dumps(claims), json.dumps(headers)],
            )
            for setting in settings.items():
                connection.execute("select set_config(%s, %s, true)", setting)
            name = sql.Identifier("public", request.path_params["name"])
            named = sql.SQL(", ").join(sql.SQL("{0} => _.{0}").format(sql.Identifier(a)) for a in arguments)
            source = sql.SQL("json_to_record(%s) as _ ({})").format(sql.SQL(", ".join(function["given"])))
            if not arguments:
                source = sql.SQL("(select %s) as _")
            query = sql.SQL("select to_json(r) as result from {}, lateral {}({}) r").format(source, name, named)
            rows = [row["result"] for row in connection.execute(query, [json.dumps(arguments)])]
    return rows if function["proretset"] else rows[0]


def _settings(config: list[str] | None) -> dict[str, str]:
    """The settings of a role or a function, as the catalog has them."""
    return {name: value for name, _, value in (setting.partition("=") for setting in config or [])}


def _role_settings(connection: psycopg.Connection[dict[str, Any]], role: str) -> dict[str, str]:
    """The settings of a role that may be impersonated, as far as anybody may set them."""
    found = connection.execute(
        "select r.rolconfig from pg_auth_members m join pg_roles r on r.oid = m.roleid"
        " where m.member = current_user::regrole and r.rolname = %s",
        [role],
    ).fetchone()
    settings = _settings(found["rolconfig"]) if found else {}
    allowed = connection.execute(
        "select name from pg_settings where name = any (%s) and context = 'user'", [list(settings)]
    ).fetchall()
    return {row["name"]: settings[row["name"]].lower() for row in allowed}


def _database_error(error: psycopg.Error, role: str) -> JSONResponse:
    sqlstate = error.sqlstate or "XX000"
    by_class = {"08": 503, "53": 503, "40": 500, "57": 500, "XX": 500, "P0": 500}
    if sqlstate.startswith("PT"):
        status = int(sqlstate[2:])
    elif sqlstate == "42501":
        status = 401 if role == "anon" else 403
    else:
        status = by_class.get(sqlstate[:2], 400)
    return _error(status, sqlstate, error.diag.message_primary, error.diag.message_detail, error.diag.message_hint)


def _error(
    status: int, code: str, message: str | None, details: str | None = None, hint: str | None = None
) -> JSONResponse:
    return JSONResponse({"code": code, "message": message, "details": details, "hint": hint}, status)
