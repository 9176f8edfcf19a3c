"""A Supabase project that runs the forwarders on Deno, the app behind it, and the two clients of Supabase."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.deno import CONFIG, DENO, FORWARDERS, ROOT, Script, environment
from ..support.forwarders import CRON_SECRET, Project
from ..support.ports import unanswered_port
from ..support.serving import serving
from ..support.supabase_clients import Invoke, by_supabase_js, by_supabase_py


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


@pytest.fixture(scope="session")
def supabase_js(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Script]:
    """supabase-js, with the function of supabase/README.md that shows its errors."""
    script = str(FORWARDERS / "supabase_js.ts")
    fetched = subprocess.run(
        [DENO, "cache", CONFIG, "--frozen", script], env=environment(), capture_output=True, text=True
    )
    if fetched.returncode:
        why = next(line for line in fetched.stderr.splitlines() if line.startswith("error"))
        pytest.skip(f"needs supabase-js, which npm's registry has not given: {why}")
    snippets = re.findall(r"```js\n(.*?)```", (ROOT / "supabase" / "README.md").read_text(), re.DOTALL)
    (snippet,) = [snippet for snippet in snippets if "FunctionsHttpError" in snippet]
    module: Path = tmp_path_factory.mktemp("readme") / "snippet.js"
    module.write_text(snippet)
    running = Script(CONFIG, "--frozen", "--cached-only", "--allow-all", script, module.as_uri())
    yield running
    running.close()


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
