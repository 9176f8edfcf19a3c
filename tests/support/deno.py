"""Deno, which comes with the package deno: processes that are spoken to line by line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VENV = Path(sys.executable).parent.parent
ROOT = Path(__file__).parents[2]
FORWARDERS = ROOT / "tests" / "forwarders"
DENO = str(VENV / "bin" / "deno")
CONFIG = f"--config={FORWARDERS / 'deno.json'}"


def environment() -> dict[str, str]:
    """Without the forwarders' secrets; what Deno keeps is in .venv, as the Makefile has it."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("LASTCALL_")}
    return {**given, "DENO_DIR": str(VENV / "deno"), "NO_COLOR": "1"}


class Script:
    """A running script of tests/forwarders, which prints `ready …` first, and then a line for each line it is given."""

    def __init__(self, *arguments: str) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [DENO, "run", "--no-prompt", *arguments],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.ready = self._read()
        assert self.ready.startswith("ready"), (self.ready, self.errors())

    def ask(self, question: Any) -> str:
        """Its line in answer to a line of JSON."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._read()

    def errors(self) -> str:
        """All that it wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read()

    def close(self) -> None:
        """End it, as it ends when there is nothing more to read."""
        self._process.communicate(timeout=30)
        self._errors.close()
        assert self._process.returncode == 0

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")
