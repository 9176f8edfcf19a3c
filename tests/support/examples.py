"""Examples that Hypothesis makes up: the same in every run, unless the environment asks for others.

FUZZ_EXAMPLES: try so many of each kind, others each time.
FUZZ_SEED: the seed of these others. A test that fails prints the seed that it ran with.
"""

from __future__ import annotations

import os
import secrets
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

T = TypeVar("T")

_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 0)
_SEED = int(os.environ.get("FUZZ_SEED") or secrets.randbits(32))

# Hypothesis draws constants of every module of ours that is loaded: the examples would change with the tests before.
providers._get_local_constants = lambda: providers._local_constants


def examples(number: int, **more: Any) -> settings:
    """So many examples, always the same ones; or as many others as FUZZ_EXAMPLES says. more: further settings."""
    return settings(
        max_examples=_EXAMPLES or number,
        derandomize=not _EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )


def seeded(test: T) -> T:
    """The test or state machine, with the seed of this run where its examples are others each time."""
    return hypothesis.seed(_SEED)(test) if _EXAMPLES else test  # type: ignore[type-var]


def print_seed() -> None:
    """Tell how to get the same examples again: pytest shows what a failed test has printed."""
    if _EXAMPLES:
        print(f"FUZZ_EXAMPLES={_EXAMPLES} FUZZ_SEED={_SEED}")
