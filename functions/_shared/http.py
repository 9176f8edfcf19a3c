"""HTTP as every function speaks it: method, body, replies, errors, request id, CORS."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, MutableHeaders
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import FunctionError, unavailable
from .log import logger
from .telemetry import Telemetry

Handler = Callable[[Request], Awaitable[Response]]
ErrorBody = Callable[[FunctionError], dict[str, Any]]
T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

# Bytes to read and discard beyond the limit: a client that is still sending when the connection closes may never see
# the 413.
_PASSED_OVER_BYTES = 1 << 25

LARGE_AT_ONCE = 16
"""Most requests to a function with large bodies at a time, of this process: what they hold is bounded so."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "X-Request-Id, Retry-After, X-Calls-In-Progress, X-Calls-Starting",
}
_USUAL_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_KNOWN_METHODS = (*_USUAL_METHODS, "OPTIONS")
_NO_FUNCTION = "none"
_ALLOWED_HEADERS = "authorization, apikey, content-type, idempotency-key, x-client-info, x-region, x-request-id"


def reply(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(
        msgspec.json.encode(body),
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        "application/json",
    )


def error_body(error: FunctionError) -> dict[str, Any]:
    """The error body of the snake-case functions; the Supabase clients show its `error`."""
    return {"success": False, "error": error.message, "code": error.code, **error.details}


class EdgeFunction:
    """An edge function at its methods (none given: at any): anything that its handler raises becomes its error body.
    With has_large_body only LARGE_AT_ONCE requests of it run at a time, and one more is 503."""

    def __init__(
        self, handler: Handler, methods: tuple[str, ...], failure: str, errors: ErrorBody, has_large_body: bool
    ) -> None:
        self.handler = handler
        self.name = handler.__name__.replace("_", "-")
        self.methods = methods
        self.failure = failure
        self.errors = errors
        self.has_large_body = has_large_body
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except FunctionError as error:
            request.state.code = error.code
            response = reply(self.errors(error), error.status, error.headers)
        except ClientDisconnect:
            return  # in the middle of its body: nobody is left to answer
        except Exception:
            fields = {"request_id": request.state.request_id}
            logger.exception("request failed", extra={"fields": fields})
            request.state.code = "internal_error"
            response = reply(self.errors(FunctionError(500, "internal_error", self.failure)), 500)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        methods = [name for method in self.methods for name in ([method, "HEAD"] if method == "GET" else [method])]
        allow = ", ".join([*(methods or _USUAL_METHODS), "OPTIONS"])
        if request.method == "OPTIONS":
            preflight = {
                "Allow": allow,
                "Access-Control-Allow-Methods": allow,
                "Access-Control-Allow-Headers": _ALLOWED_HEADERS,
                "Access-Control-Max-Age": "86400",
            }
            return Response(status_code=204, headers=preflight)
        if methods and request.method not in methods:
            raise FunctionError(
                405, "method_not_allowed", f"Method must be {' or '.join(self.methods)}", {"Allow": allow}
            )
        if self.has_large_body and self.running >= LARGE_AT_ONCE:
            raise unavailable("busy", "Too many such requests at a time; try again")
        self.running += 1
        try:
            return await self.handler(request)
        finally:
            self.running -= 1


def edge_function(
    *methods: str, failure: str, errors: ErrorBody = error_body, has_large_body: bool = False
) -> Callable[[Handler], EdgeFunction]:
    """Make a handler an edge function: its methods (none: any), the message of its 500, its error body, and whether
    its bodies are so large that only some of them may be held at a time."""
    return lambda handler: EdgeFunction(handler, methods, failure, errors, has_large_body)


async def read_body(request: Request, type_: type[T], *, max_bytes: int | None = None) -> T:
    """The request's JSON body as type_. max_bytes: the limit, where it is not that of the settings.
    Raises 413 (over the limit) and 400 (not such an object)."""
    body = await _read(request, max_bytes)
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError as error:
        raise invalid(error, "invalid_body") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise FunctionError(400, "invalid_body", "Body must be a JSON object") from None


async def read_text(request: Request, *, max_bytes: int | None = None) -> str:
    """The request's body to the letter, for a signature is over it. Raises 413 (over the limit) and 400 (not UTF-8,
    or with a NUL, which Postgres cannot hold)."""
    body = await _read(request, max_bytes)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise FunctionError(400, "invalid_body", "Body must be UTF-8") from None
    if "\0" in text:
        raise FunctionError(400, "invalid_body", "Body must not hold a NUL")
    return text


async def _read(request: Request, max_bytes: int | None) -> bytearray:
    body = bytearray()
    async for chunk in _limited(request, max_bytes or request.app.state.settings.max_body_bytes):
        body += chunk
    return body


@asynccontextmanager
async def read_form(request: Request, *, max_bytes: int) -> AsyncIterator[FormData]:
    """The request's multipart form with at most one file, which is on disk and gone at the end of the block.
    Raises 413 (over the limit) and 400 (not such a form)."""
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise FunctionError(400, "invalid_body", "Body must be multipart/form-data")
    if parameters.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise FunctionError(400, "invalid_body", "Body must be UTF-8")
    parser = MultiPartParser(
        request.headers, _limited(request, max_bytes), max_files=1, max_fields=100, max_part_size=1 << 16
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise FunctionError(400, "invalid_body", error.message) from None
    try:
        yield form
    finally:
        await form.close()


async def _limited(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The request's body. Raises 413 when it is over the limit, at its end."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            yield chunk
        elif size > limit + _PASSED_OVER_BYTES:
            break
    if size > limit:
        # Or the server would go on to read what is left of it.
        close = {"Connection": "close"} if request.scope["http_version"].startswith("1") else {}
        raise FunctionError(413, "body_too_large", f"Body must have at most {limit} bytes", close)


def read_query(request: Request, type_: type[S]) -> S:
    """The request's path and query parameters as type_; empty ones are as if left out. Raises 400."""
    given = {name: value for name, value in request.query_params.items() if value} | request.path_params
    try:
        found = msgspec.convert(given, type_, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(error, "invalid_query") from None
    for field in msgspec.structs.fields(type_):
        # Text that says null is taken for null, hence for a parameter that was left out.
        if field.encode_name in given and getattr(found, field.name) is None:
            raise FunctionError(400, "invalid_query", f"Invalid value - at `$.{field.encode_name}`")
    return found


def read_path(request: Request, type_: type[T]) -> T:
    """The request's path parameters as type_. Raises 400."""
    try:
        return msgspec.convert(request.path_params, type_, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(error, "invalid_path") from None


def invalid(error: msgspec.ValidationError, code: str) -> FunctionError:
    """400 for what is not of its type; what is missing has a code of its own."""
    missing = re.fullmatch(r"Object missing required field `(\w+)`", str(error))
    if missing:
        return FunctionError(400, f"{missing[1]}_required", f"{missing[1]} is required")
    return FunctionError(400, code, str(error))


class RequestContext:
    """Outermost: gives each request an id (its X-Request-Id, if that is one), answers with it and the
    CORS headers, and writes one log line when the reply is out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        request.state.request_id = request_id
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers.update(_CORS)
            await send(message)

        telemetry: Telemetry = scope["app"].state.telemetry
        with telemetry.operation("request", _NO_FUNCTION, remote=request.headers, request_id=request_id) as operation:
            started = time.perf_counter()
            try:
                await self.app(scope, receive, send_with_headers)
            finally:
                route = getattr(scope.get("route"), "path", None)
                # A method may be any word that somebody sends.
                method = scope["method"] if scope["method"] in _KNOWN_METHODS else "other"
                fields = {
                    "request_id": request_id,
                    "method": method,
                    "route": route,
                    "status": status,
                    "duration_ms": round((time.perf_counter() - started) * 1000, 1),
                    "user_id": getattr(request.state, "user_id", None),
                }
                logger.info("request", extra={"fields": fields})
                operation.name = getattr(scope.get("endpoint"), "name", _NO_FUNCTION)
                operation.outcome = getattr(request.state, "code", "") or ("ok" if status else "abandoned")
                operation.details["method"] = method
                operation.details["status"] = status
                if route is not None:
                    operation.details["route"] = route  # as the app names it: the path itself may hold a secret


async def not_found(request: Request, _error: Exception) -> Response:
    """The answer at a path where no function is."""
    error = FunctionError(404, "no_such_function", f"No function at {request.url.path}")
    request.state.code = error.code
    return reply(error_body(error), error.status)
