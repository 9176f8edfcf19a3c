"""supabase.functions.invoke by Supabase's clients for JavaScript and for Python."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
from supabase import Client, ClientOptions
from supabase_functions.errors import FunctionsHttpError

from .deno import Script
from .postgrest import PUBLISHABLE_KEY


@dataclass
class Outcome:
    """The result of invoke. shown: the text of an error that the app shows to its user."""

    data: Any = None
    shown: str | None = None
    status: int | None = None


class Invoke(Protocol):
    """supabase.functions.invoke, in one language or the other."""

    def __call__(
        self,
        url: str,
        name: str,
        body: dict[str, Any] | str | None = None,
        *,
        token: str,
        method: str = "POST",
        headers: dict[str, str] | None = None,
    ) -> Outcome: ...


def by_supabase_js(script: Script) -> Invoke:
    def invoke(
        url: str,
        name: str,
        body: dict[str, Any] | str | None = None,
        *,
        token: str,
        method: str = "POST",
        headers: dict[str, str] | None = None,
    ) -> Outcome:
        call = {"url": url, "key": PUBLISHABLE_KEY, "token": token, "name": name, "method": method}
        call |= {"headers": headers or {}, ("text" if isinstance(body, str) else "json"): body}
        answer = json.loads(script.ask(call))
        return Outcome(answer["data"], answer["shown"], answer["status"])

    return invoke


def by_supabase_py(
    url: str,
    name: str,
    body: dict[str, Any] | str | None = None,
    *,
    token: str,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> Outcome:
    with httpx.Client(timeout=60) as http:
        client = Client(url, PUBLISHABLE_KEY, ClientOptions(httpx_client=http))
        client.functions.set_auth(token)
        try:
            data = client.functions.invoke(name, {"method": method, "headers": headers or {}, "body": body})
        except FunctionsHttpError as error:
            return Outcome(shown=error.message, status=error.status)
    assert isinstance(data, bytes)
    text = data.decode()
    return Outcome(json.loads(text) if text.startswith("{") else text, status=200)
