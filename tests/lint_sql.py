"""Read every procedure's body with plpgsql_check: names, types, dead code, volatility, injection.

Needs a PostgreSQL with that extension, which the embedded one has not: TEST_POSTGRES_BIN, or
Debian's postgresql-15 with postgresql-15-plpgsql-check. Run: make lint-sql
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import psycopg

from functions.migrations import migrate
from functions.postgres_server import PostgresServer

QUERY = """
select format('%s: line %s, %s: %s', p.oid::regprocedure, c.lineno, c.level, c.message)
  from pg_proc p
  join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
 cross join lateral plpgsql_check_function_tb(
         p.oid, other_warnings => true, performance_warnings => true, extra_warnings => true,
         security_warnings => true, compatibility_warnings => true) c
 where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace)
 order by 1
"""


def main() -> int:
    """Print each finding; returns 1 if there is any."""
    bin_folder = Path(os.environ.get("TEST_POSTGRES_BIN", "/usr/lib/postgresql/15/bin"))
    with tempfile.TemporaryDirectory(prefix="lastcall-lint-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(bin_folder, Path(folder), {"fsync": "off"})
        server.start()
        try:
            migrate(server.uri())
            with psycopg.connect(server.uri()) as connection:
                connection.execute("create extension plpgsql_check")
                findings = [row[0] for row in connection.execute(QUERY)]
                checked = connection.execute(
                    "select count(*) from pg_proc where pronamespace in ('public'::regnamespace,"
                    " 'private'::regnamespace) and prolang = (select oid from pg_language where lanname = 'plpgsql')"
                ).fetchone()
        finally:
            server.stop()
    print(*findings, f"plpgsql_check read {checked and checked[0]} procedures: {len(findings)} findings", sep="\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
