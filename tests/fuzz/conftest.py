"""Each fuzz test says which seed its examples come from."""

from __future__ import annotations

import pytest

from ..support.examples import print_seed


@pytest.fixture(autouse=True)
def the_seed_is_printed() -> None:
    print_seed()
