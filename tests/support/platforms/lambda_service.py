"""A stand-in for Lambda: a function URL in front, the runtime API behind, as AWS documents them.

One sandbox, hence one invocation at a time, in the order in which the requests came.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
import uuid
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_RUNTIME = "/2018-06-01/runtime"


class LambdaService:
    """A function and its URL."""

    def __init__(self) -> None:
        self._invocations: asyncio.Queue[tuple[str, dict[str, Any]] | None] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._results: dict[str, asyncio.Future[dict[str, Any] | None]] = {}
        self._polled = threading.Event()

    def app(self) -> Starlette:
        every = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        return Starlette(
            routes=[
                Route(f"{_RUNTIME}/invocation/next", self._next),
                Route(f"{_RUNTIME}/invocation/{{id}}/response", self._response, methods=["POST"]),
                Route(f"{_RUNTIME}/invocation/{{id}}/error", self._error, methods=["POST"]),
                Route("/{path:path}", self._invoke, methods=every),
            ]
        )

    def polled(self) -> bool:
        """Whether a sandbox has started and asks for work."""
        return self._polled.is_set()

    def stop(self) -> None:
        """Let go of the sandbox that asks for work."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._invocations.put_nowait, None)

    async def _invoke(self, request: Request) -> Response:
        invocation = str(uuid.uuid4())
        result = self._results[invocation] = asyncio.get_running_loop().create_future()
        await self._invocations.put((invocation, await event(request, invocation)))
        answer = await result
        if answer is None:
            return Response("Internal Server Error", 502)
        body = answer.get("body") or ""
        response = Response(
            base64.b64decode(body) if answer.get("isBase64Encoded") else body, answer["statusCode"], answer["headers"]
        )
        for cookie in answer.get("cookies") or []:
            response.headers.append("set-cookie", cookie)
        return response

    async def _next(self, _request: Request) -> Response:
        self._loop = asyncio.get_running_loop()
        self._polled.set()
        next_one = await self._invocations.get()
        if next_one is None:
            return Response(status_code=500)
        invocation, given = next_one
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation,
            "Lambda-Runtime-Deadline-Ms": str(int(time.time() * 1000) + 60_000),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-west-2:123456789012:function:lastcall",
            "Lambda-Runtime-Trace-Id": "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700",
        }
        return JSONResponse(given, headers=headers)

    async def _response(self, request: Request) -> Response:
        return self._settle(request, await request.json())

    async def _error(self, request: Request) -> Response:
        return self._settle(request, None)

    def _settle(self, request: Request, answer: dict[str, Any] | None) -> Response:
        self._results.pop(request.path_params["id"]).set_result(answer)
        return JSONResponse({"status": "OK"}, 202)


async def event(request: Request, invocation: str) -> dict[str, Any]:
    """The request as an event of a function URL, payload format 2.0."""
    body = await request.body()
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        query[name] = f"{query[name]},{value}" if name in query else value
    path = request.scope["raw_path"].decode()
    cookie = headers.pop("cookie", "")
    given: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": request.url.query,
        "headers": {
            **headers,
            "host": "url-id.lambda-url.us-west-2.on.aws",
            "x-forwarded-for": "123.123.123.123",
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
        },
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "url-id",
            "domainName": "url-id.lambda-url.us-west-2.on.aws",
            "domainPrefix": "url-id",
            "http": {
                "method": request.method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "123.123.123.123",
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": invocation,
            "routeKey": "$default",
            "stage": "$default",
            "time": "22/Nov/2026:19:03:58 +0000",
            "timeEpoch": 1795374238390,
        },
        "isBase64Encoded": False,
    }
    if query:
        given["queryStringParameters"] = query
    if cookie:
        given["cookies"] = cookie.split("; ")
    if body:
        is_text = headers.get("content-type", "").startswith(("application/json", "text/"))
        given["body"] = body.decode() if is_text else base64.b64encode(body).decode()
        given["isBase64Encoded"] = not is_text
    return json.loads(json.dumps(given))  # type: ignore[no-any-return]
