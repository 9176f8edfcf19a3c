"""The caller: the Supabase JWT of the request, verified."""

from __future__ import annotations

import contextlib
import hmac
import json
import re
import time
from typing import Any

import anyio
import jwt
import msgspec
from starlette.requests import Request

from .errors import FunctionError, unavailable
from .log import logger
from .settings import Settings
from .telemetry import NO_TELEMETRY, Telemetry

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ASYMMETRIC = ["ES256", "RS256", "EdDSA"]


class Caller(msgspec.Struct, frozen=True):
    """On whose behalf a procedure is called."""

    role: str
    """The database role: authenticated for people, service_role for the service itself, anon without a token."""
    claims: dict[str, Any]
    """The verified claims of the token."""
    token: str = ""
    """The token itself, for PostgREST to verify again."""
    request_id: str = ""


class TokenVerifier:
    """Verifies tokens by the settings: by the shared secret (HS256) if there is one, or else by the
    project's published keys (ES256, RS256, EdDSA). A secret that is being replaced, by another one or by
    published keys, counts as well. A key counts for its own algorithm only, so that no public key is taken
    for a secret."""

    def __init__(self, settings: Settings, telemetry: Telemetry = NO_TELEMETRY) -> None:
        self.settings = settings
        self.secrets = [secret for secret in (settings.jwt_secret, settings.jwt_secret_previous) if secret]
        url = f"{settings.supabase_url}/auth/v1/.well-known/jwks.json"
        self.keys = None if settings.jwt_secret else JwksCache(url, telemetry)

    async def verify(self, token: str) -> dict[str, Any]:
        """The claims of a user's token. Raises 401, or 503 when the keys are out of reach."""
        if token.startswith("sb_"):
            raise _unauthorized("An API key is not a user token: send the signed-in user's access token")
        try:
            claims = await self._claims(token)
            _check_storable(claims)
        except jwt.ExpiredSignatureError:
            raise _unauthorized("Token has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError):
            # One message for all: how a forged token failed is nobody's business.
            raise _unauthorized("Invalid token") from None
        if not isinstance(claims["sub"], str) or not _UUID.fullmatch(claims["sub"]):
            raise _unauthorized("Token names no user")
        if claims.get("role", "authenticated") != "authenticated":
            raise _unauthorized("Not a user token")
        return claims

    async def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        if self.keys is not None and header.get("alg") in _ASYMMETRIC:
            kid = header.get("kid")
            if not isinstance(kid, str):
                raise jwt.InvalidTokenError("no key is named")
            key = await self.keys.get(kid)
            return self._decode(token, key, [name for name in _ASYMMETRIC if name == key.algorithm_name])
        for secret in self.secrets:
            with contextlib.suppress(jwt.InvalidSignatureError):
                return self._decode(token, secret, ["HS256"])
        raise jwt.InvalidTokenError("no key has signed it")

    def _decode(self, token: str, key: Any, algorithms: list[str]) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            algorithms=algorithms,
            audience=self.settings.jwt_audience,
            issuer=self.settings.jwt_issuer,
            options={"require": ["exp", "aud", "iss", "sub"], "verify_iat": False},
        )


class JwksCache:
    """The project's public keys, fetched when needed and kept.

    A key id that is not known yet is looked up at once (keys rotate), but the address is asked at
    most once in COOLDOWN_S seconds, however many tokens name keys that do not exist. While it is
    out of reach, the keys known so far go on to count until TTL_S, and no longer: a key may have been
    taken back meanwhile.
    """

    REFRESH_S = 300.0
    TTL_S = 600.0
    COOLDOWN_S = 5.0
    TIMEOUT_S = 3.0
    MAX_BYTES = 1 << 20

    def __init__(self, url: str, telemetry: Telemetry = NO_TELEMETRY) -> None:
        self.url = url
        self._telemetry = telemetry
        self._keys: dict[str, jwt.PyJWK] | None = None
        self._fetched_at = 0.0
        self._tried_at: float | None = None
        self._in_reach = False
        self._lock = anyio.Lock()

    async def get(self, kid: str) -> jwt.PyJWK:
        """The key of that id. Raises jwt.InvalidTokenError (there is none), 503 (out of reach)."""
        if not self._knows(kid) or (self._is_old() and not self._lock.locked()):
            # A request with an unknown key waits here for a fetch under way, and uses its keys.
            async with self._lock:
                if (not self._knows(kid) or self._is_old()) and not self._is_cooling_down():
                    await self._fetch()
        if self._keys is not None and self._knows(kid):
            return self._keys[kid]
        if self._keys is None or not self._in_reach:
            raise unavailable("keys_unavailable", "The keys that verify tokens are out of reach")
        raise jwt.InvalidTokenError("no such key")

    def _knows(self, kid: str) -> bool:
        return self._keys is not None and kid in self._keys and self._age_s() <= self.TTL_S

    def _is_old(self) -> bool:
        return self._age_s() > self.REFRESH_S

    def _age_s(self) -> float:
        return time.monotonic() - self._fetched_at

    def _is_cooling_down(self) -> bool:
        return self._tried_at is not None and time.monotonic() - self._tried_at < self.COOLDOWN_S

    async def _fetch(self) -> None:
        asked_at = time.monotonic()
        try:
            with anyio.fail_after(self.TIMEOUT_S):
                self._keys = _public_signing_keys(await self._download())
            self._fetched_at = asked_at
            self._in_reach = True
            self._telemetry.count("jwks_fetch", "ok")
        except Exception:  # whatever it answers, it is no fault of the token
            logger.exception("jwks fetch failed")
            self._in_reach = False
            self._telemetry.count("jwks_fetch", "failed")
        finally:
            self._tried_at = time.monotonic()

    async def _download(self) -> Any:
        import httpx2  # only here: with a shared secret nothing is downloaded

        body = bytearray()
        async with (
            httpx2.AsyncClient(timeout=self.TIMEOUT_S) as client,
            client.stream("GET", self.url) as response,
        ):
            response.raise_for_status()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > self.MAX_BYTES:
                    raise ValueError("too long")
        return msgspec.json.decode(body)


def _public_signing_keys(jwks: Any) -> dict[str, jwt.PyJWK]:
    """The keys of the set that can be used; one that cannot takes none of the others with it."""
    if not isinstance(jwks["keys"], list):
        raise TypeError("keys must be a list")
    keys = {}
    for key in jwks["keys"]:
        try:
            if key["kty"] in ("EC", "RSA", "OKP") and key.get("use", "sig") == "sig" and isinstance(key["kid"], str):
                keys[key["kid"]] = jwt.PyJWK(key)
        except Exception:
            logger.warning("jwks holds a key that cannot be used")
    return keys


def _check_storable(claims: dict[str, Any]) -> None:
    """Raises ValueError for what Postgres could not read again: a NUL, half a surrogate pair, a number without end."""
    text = json.dumps(claims, ensure_ascii=False, allow_nan=False)
    text.encode()
    if "\\u0000" in text.replace("\\\\", ""):
        raise ValueError("NUL")


def _unauthorized(message: str) -> FunctionError:
    return FunctionError(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})


def _bearer(request: Request) -> str:
    authorization = request.headers.get("authorization")
    if authorization is None:
        raise _unauthorized("Missing authorization header")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _unauthorized("Invalid authorization header")
    return token.strip()


async def verify_jwt(request: Request) -> Caller:
    """The signed-in user who sent the request. Raises 401 (no valid user token), 503 (the keys
    that verify it are out of reach)."""
    token = _bearer(request)
    claims = await request.app.state.verifier.verify(token)
    request.state.user_id = claims["sub"]
    return Caller("authenticated", claims, token, request.state.request_id)


def verify_service(request: Request) -> Caller:
    """The service itself, such as cron: whoever sends one of the settings' secrets as Bearer. Raises 401."""
    settings: Settings = request.app.state.settings
    token = _bearer(request)
    # Each is compared, and in a time that tells nothing of how much of it was right.
    known = [
        hmac.compare_digest(token.encode(), secret.encode())
        for secret in (
            settings.secret_key,
            settings.secret_key_previous,
            settings.cron_secret,
            settings.cron_secret_previous,
        )
        if secret
    ]
    if not any(known):
        raise _unauthorized("Not a secret of the service")
    return service_caller(settings, request.state.request_id)


def service_caller(settings: Settings, request_id: str = "") -> Caller:
    """The service itself, as a caller."""
    return Caller("service_role", {"role": "service_role"}, settings.secret_key or "", request_id)


def anonymous_caller(settings: Settings, request_id: str = "") -> Caller:
    """Whoever sends a request without a token: may call what proves itself in another way, and nothing else."""
    return Caller("anon", {"role": "anon"}, settings.publishable_key or "", request_id)
