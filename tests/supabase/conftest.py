"""One server for all; a project's database for each test that changes it, and one for those that only look."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..support.hosted import HostedPostgres, supabase
from ..support.ports import reserved_port
from ..support.servers import short_lived_folder


@pytest.fixture(scope="session")
def hosted() -> Iterator[HostedPostgres]:
    with short_lived_folder() as folder, reserved_port() as port:
        hosted = HostedPostgres(folder, port)
        hosted.start()
        yield hosted
        hosted.server.stop()


@pytest.fixture(scope="session")
def pushed(hosted: HostedPostgres) -> str:
    """A project's database after `supabase db push --include-seed`."""
    database = hosted.project()
    done = supabase("db", "push", "--include-seed", uri=hosted.uri(database))
    assert done.returncode == 0, done.stderr
    return database
