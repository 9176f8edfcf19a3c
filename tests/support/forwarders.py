"""A Supabase project that runs the forwarders on Deno."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .deno import Script

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
        """The log lines of all functions in this test."""
        return self._script.errors()[self._logged_before :]

    def begin_log(self) -> None:
        """Leave out the log lines so far: they are of other tests."""
        self._logged_before = len(self._script.errors())
