"""The program's constants, each of which a test may change for itself alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def _constants() -> dict[tuple[str, str], Any]:
    """The value of each constant of the loaded modules of the program and of their classes."""
    modules = [module for name, module in sys.modules.copy().items() if name.partition(".")[0] == "functions"]
    classes = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    return {
        (getattr(holder, "__qualname__", holder.__name__), name): value
        for holder in (*modules, *classes)
        for name, value in vars(holder).items()
        if name.isupper()
    }


@contextmanager
def constants_left_as_found() -> Iterator[None]:
    """Fail when the block leaves a constant of the program with another value, and name the constant."""
    before = _constants()
    yield
    after = _constants()
    changed = [".".join(name) for name in before if after.get(name) is not before[name]]
    assert changed == [], f"This test leaves changed constants to the tests after it: {', '.join(changed)}"
