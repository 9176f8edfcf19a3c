"""The rule that all hostile input is held to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..support.examples import examples, seeded
from ..support.serving import Log, logged

T = TypeVar("T")

PLANTED = "planted-0b5e55ed"
"""Text of bodies, names and headers that may not come up in a log."""
PHONE_NUMBER = "+15550137137"
"""The same for numbers."""
_NEVER_LOGGED = (PLANTED, PHONE_NUMBER, PHONE_NUMBER[1:], "Traceback", "eyJ", "Bearer")


def fuzz(number: int) -> Callable[[T], T]:
    """A test that tries so many examples, always the same ones; or as many others as FUZZ_EXAMPLES says."""
    return lambda test: seeded(examples(number)(test))  # type: ignore[type-var]


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
