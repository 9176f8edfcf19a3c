"""Cloud Run functions: the function `lastcall`."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from functions.app import app


class _Answer(Response):
    """The app's own answer: a response is called as an app is."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)


@functions_framework.aio.http
async def lastcall(_request: Request) -> Response:
    """Any request; its body is not read yet."""
    return _Answer()
