"""The program's constants, each of which a test may change for itself alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any


@cache
def _constants_of(module: ModuleType) -> list[tuple[Any, str]]:
    """The constants of a module and of its classes: whose each one is, and its name."""
    classes = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    return [
        (holder, name)
        for holder in (module, *(value for value in classes if isinstance(value, type)))
        for name in vars(holder)
        if name.isupper()
    ]


def _values() -> list[tuple[Any, str, Any]]:
    """The constants of the loaded modules of the program, with their values."""
    return [
        (holder, name, vars(holder)[name])
        for module_name, module in sys.modules.copy().items()
        if module_name.startswith("functions.")
        for holder, name in _constants_of(module)
    ]


@contextmanager
def constants_left_as_found() -> Iterator[None]:
    """Fail when the block leaves a constant of the program with another value, and name the constant."""
    before = _values()
    yield
    changed = [f"{holder.__name__}.{name}" for holder, name, value in before if vars(holder)[name] is not value]
    assert changed == [], f"This test leaves changed constants to the tests after it: {', '.join(changed)}"
