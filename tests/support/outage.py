"""A service whose database is away, or does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2


@contextmanager
def impatient(app: Any) -> Iterator[None]:
    """Requests of the block wait only a moment for a connection and for an answer, since none comes.

    Others wait as long as the settings say, so that a slow machine answers them too. The service has asked its
    database before.
    """
    database = app.state.database
    pool = database._pool
    patience, deadline_s = pool.timeout, database._deadline_s
    pool.timeout, database._deadline_s = 0.3, 0.6
    try:
        yield
    finally:
        pool.timeout, database._deadline_s = patience, deadline_s


def unavailable(response: httpx2.Response) -> bool:
    """Whether the response is a 503 with Retry-After."""
    return response.status_code == 503 and int(response.headers["Retry-After"]) > 0
