"""A Supabase project that runs the forwarders on Deno, the app behind it, and the two clients of Supabase."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from supabase import Client, ClientOptions
from supabase_functions.errors import FunctionsHttpError

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.deno import CONFIG, DENO, FORWARDERS, ROOT, Script, environment
from ..support.ports import unanswered_port
from ..support.postgrest import PUBLISHABLE_KEY
from ..support.serving import serving

CRON_SECRET = "the-cron-secret-of-at-least-32-bytes"


class Project:
    """A Supabase project."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._logged_before = 0
        self.url = f"http://127.0.0.1:{script.ready.removeprefix('ready ')}"

    def function(self, name: str) -> str:
        return f"{self.url}/functions/v1/{name}"

    @contextmanager
    def secrets(self, **values: str) -> Iterator[None]:
        """As `supabase secrets set` does, and at the end unset."""
        assert self._script.ask(values) == "set"
        try:
            yield
        finally:
            assert self._script.ask(dict.fromkeys(values)) == "set"

    def log(self) -> str:
        """What all functions logged in this test."""
        return self._script.errors()[self._logged_before :]

    def begin_log(self) -> None:
        """What was logged so far was logged by other tests."""
        self._logged_before = len(self._script.errors())


@pytest.fixture(scope="session")
def deno_project() -> Iterator[Project]:
    # All that the forwarders may do: read their settings, and reach the app and PostgREST.
    script = Script(
        "--no-config",
        "--no-npm",
        "--no-remote",
        "--allow-net",
        "--allow-env=LASTCALL_URL,LASTCALL_TIMEOUT_S,SUPABASE_URL,SUPABASE_ANON_KEY,SUPABASE_PUBLISHABLE_KEYS",
        f"--allow-read={ROOT / 'supabase' / 'functions'}",
        str(FORWARDERS / "project.ts"),
    )
    yield Project(script)
    script.close()


@pytest.fixture
def project(deno_project: Project) -> Project:
    """A project that has the forwarders, and no secrets."""
    deno_project.begin_log()
    return deno_project


@pytest.fixture
def app_url(settings: Settings) -> Iterator[str]:
    """The app, over a database."""
    with serving(create_app(replace(settings, cron_secret=CRON_SECRET))) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def forwarding(project: Project, app_url: str) -> Iterator[Project]:
    """A project whose forwarders lead to the app."""
    with project.secrets(LASTCALL_URL=app_url):
        yield project


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address at which nobody listens, and nobody will."""
    with unanswered_port() as port:
        yield f"http://127.0.0.1:{port}"


@dataclass
class Outcome:
    """What invoke gave. shown: what the app shows its user of an error."""

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


@pytest.fixture(scope="session")
def supabase_js(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Script]:
    """supabase-js, with what the README says about its errors."""
    script = str(FORWARDERS / "supabase_js.ts")
    fetched = subprocess.run(
        [DENO, "cache", CONFIG, "--frozen", script], env=environment(), capture_output=True, text=True
    )
    if fetched.returncode:
        why = next(line for line in fetched.stderr.splitlines() if line.startswith("error"))
        pytest.skip(f"needs supabase-js, which npm's registry has not given: {why}")
    snippets = re.findall(r"```js\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (snippet,) = [snippet for snippet in snippets if "FunctionsHttpError" in snippet]
    module: Path = tmp_path_factory.mktemp("readme") / "snippet.js"
    module.write_text(snippet)
    running = Script(CONFIG, "--frozen", "--cached-only", "--allow-all", script, module.as_uri())
    yield running
    running.close()


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


@pytest.fixture
def supabase_js_invoke(supabase_js: Script) -> Invoke:
    return by_supabase_js(supabase_js)


@pytest.fixture(params=["supabase-js", "supabase-py"])
def invoke(request: pytest.FixtureRequest) -> Invoke:
    """By both clients, one after the other."""
    if request.param == "supabase-py":
        return by_supabase_py
    found: Invoke = request.getfixturevalue("supabase_js_invoke")
    return found
