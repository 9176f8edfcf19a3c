"""The examples of a run can be had again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import hashlib, importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from hypothesis import given
from tests.fuzz import strategies
from tests.fuzz.rule import fuzz
digest = hashlib.sha256()
@fuzz(100)
@given(strategies.json_text, strategies.header_value)
def run(text, header):
    digest.update(repr((text, header)).encode(errors="surrogatepass"))
run()
print(digest.hexdigest())
"""


def drawn(*modules: str, **environment: str) -> str:
    """A digest of the examples that a process draws after these modules were imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FUZZ_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *modules],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.one_postgres
def test_the_examples_are_the_same_whatever_was_imported_before() -> None:
    assert drawn() == drawn("functions.demo.story", "functions.operator.commands")


@pytest.mark.one_postgres
def test_a_seed_gives_the_examples_of_that_run_again() -> None:
    asked = {"FUZZ_EXAMPLES": "100", "FUZZ_SEED": "1"}
    assert drawn(**asked) == drawn("functions.demo.story", **asked)
    assert len({drawn(), drawn(**asked), drawn(FUZZ_EXAMPLES="100", FUZZ_SEED="2")}) == 3
