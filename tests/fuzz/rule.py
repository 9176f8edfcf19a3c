"""The rule that all hostile input is held to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings

from ..support.serving import Log, logged

_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 0)

PLANTED = "planted-0b5e55ed"
"""Text of bodies, names and headers that may not come up in a log."""
PHONE_NUMBER = "+15550137137"
"""The same for numbers."""
_NEVER_LOGGED = (PLANTED, PHONE_NUMBER, PHONE_NUMBER[1:], "Traceback", "eyJ", "Bearer")


def fuzz(examples: int) -> settings:
    """So many examples, always the same ones; or as many others as FUZZ_EXAMPLES says."""
    return settings(
        max_examples=_EXAMPLES or examples,
        derandomize=not _EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def holds(response: Any, log: Log) -> None:
    """No failure of ours, an error that its caller can read, and a log that says nothing of the request's content."""
    told = f"{response.status_code} {response.content[:500]!r}\n{log.text[-3000:]}"
    assert response.status_code < 500, told
    if response.status_code >= 400 and response.content:
        assert isinstance(response.json(), dict), told
    for line in log.lines():
        assert line["level"] in ("info", "warning"), told
        assert "exception" not in line, told
    for secret in _NEVER_LOGGED:
        assert secret not in log.text, told


@contextmanager
def heard() -> Iterator[Log]:
    """The log of the block, whose every line is one JSON object."""
    with logged() as log:
        yield log
        log.lines()
