"""Test helpers live in tests/support: a test module can change or go without breaking another one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_postgres

TESTS = Path(__file__).parents[1]
SOURCES = sorted(TESTS.rglob("*.py"))
NOT_TO_IMPORT = {path.stem for path in SOURCES if path.stem == "conftest" or path.stem.startswith("test_")}


def imported(source: str) -> Iterator[str]:
    """The parts of each imported name: `from ..a.b import c` gives a, b and c."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for name in (module, *(alias.name for alias in node.names)):
                yield from name.split(".")


def test_no_test_imports_from_a_test_module_or_conftest() -> None:
    found = {
        f"{path.relative_to(TESTS)}: {name}"
        for path in SOURCES
        for name in NOT_TO_IMPORT.intersection(imported(path.read_text()))
    }
    assert found == set(), "move the helper into tests/support"


@pytest.mark.parametrize(
    "statement",
    [
        "from .test_imports import imported",
        "from ..conftest import server",
        "from tests.harness.test_imports import imported",
        "from . import test_imports",
        "import tests.conftest",
        "def inside():\n    from ..harness import test_imports as other",
    ],
)
def test_each_form_of_import_is_seen(statement: str) -> None:
    assert NOT_TO_IMPORT.intersection(imported(statement))
