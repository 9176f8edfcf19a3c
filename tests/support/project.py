"""A stand-in for a Supabase project: the functions under the names of their forwarders, PostgREST's stand-in, and one
for Auth (GoTrue).

It has two addresses of Auth, as its documentation describes them: POST /auth/v1/token, with grant_type password (one
agreed password for every user) or refresh_token (each counts once), answers a session with a signed token; POST
/auth/v1/logout ends one. It is not GoTrue: no sign-up, no rate limits, nothing kept but in memory.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from functions._shared.settings import Settings
from functions.app import create_app

from .postgrest import PUBLISHABLE_KEY, postgrest
from .tokens import SECRET, token

PASSWORD = "the-password-of-everybody"


class Auth:
    """The stand-in for Auth."""

    def __init__(self, users: dict[str, UUID], expires_in: int = 3600) -> None:
        self.users = users
        """By email."""
        self.expires_in = expires_in
        """Seconds for which the tokens count."""
        self.refreshed = 0
        """How many sessions were refreshed."""
        self.ended: list[str] = []
        """The users whose sessions were ended."""
        self._refresh_tokens: dict[str, str] = {}

    async def token(self, request: Request) -> Response:
        body = await request.json()
        if request.headers.get("apikey") != PUBLISHABLE_KEY:
            return _error(401, "no_authorization", "Invalid API key")
        if request.query_params["grant_type"] == "password":
            email = body["email"]
            if email not in self.users or body["password"] != PASSWORD:
                return _error(400, "invalid_credentials", "Invalid login credentials")
        else:
            email = self._refresh_tokens.pop(body["refresh_token"], "")
            if not email:
                return _error(400, "refresh_token_not_found", "Invalid Refresh Token: Refresh Token Not Found")
            self.refreshed += 1
        return JSONResponse(self._session(email))

    async def logout(self, request: Request) -> Response:
        given = request.headers["authorization"].removeprefix("Bearer ")
        self.ended.append(jwt.decode(given, SECRET, algorithms=["HS256"], audience="authenticated")["sub"])
        return Response(status_code=204)

    def _session(self, email: str) -> dict[str, Any]:
        user = self.users[email]
        expires_at = int(time.time()) + self.expires_in
        refresh_token = secrets.token_urlsafe(9)
        self._refresh_tokens[refresh_token] = email
        return {
            # Two tokens of the same second differ, too.
            "access_token": token(user, exp=expires_at, session_id=secrets.token_hex(8)),
            "token_type": "bearer",
            "expires_in": self.expires_in,
            "expires_at": expires_at,
            "refresh_token": refresh_token,
            "user": {
                "id": str(user),
                "aud": "authenticated",
                "role": "authenticated",
                "email": email,
                "app_metadata": {},
                "user_metadata": {},
                "created_at": "2025-01-01T00:00:00Z",
            },
        }


def project(settings: Settings, database_url: str, auth: Auth) -> Starlette:
    """The project of these functions, whose PostgREST enters the database of that URL."""
    functions = create_app(settings)
    rest = postgrest(database_url)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with rest.router.lifespan_context(rest):
            yield
        await functions.state.database.close()

    return Starlette(
        routes=[
            Route("/auth/v1/token", auth.token, methods=["POST"]),
            Route("/auth/v1/logout", auth.logout, methods=["POST"]),
            *rest.routes,
            # Nothing else of the app is there.
            Route("/functions/v1/stop-calling", _Forwarder(functions, "/api/call/stop-calling")),
            Mount("/functions/v1", functions),
        ],
        lifespan=lifespan,
    )


class _Forwarder:
    """A function whose path in the app is another one."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "path": self._path}, receive, send)


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"code": status, "error_code": code, "msg": message}, status)
