"""The simulated carrier over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from functions.dialer.simulated_carrier import Behaviour, create_carrier

from .serving import serving

QUICK: dict[str, Any] = {"ring_s": (0.0, 0.05), "talk_s": (0.05, 0.2), "unanswered": 0.0}


@contextmanager
def simulated(**behaviour: Any) -> Iterator[str]:
    """The URL of a carrier. `behaviour` overrides QUICK: short calls, each of which is answered."""
    with serving(create_carrier(Behaviour(**{**QUICK, **behaviour}))) as (host, port):
        yield f"http://{host}:{port}"


def record(url: str) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = httpx2.get(f"{url}/calls", timeout=60, trust_env=False).json()
    return calls
