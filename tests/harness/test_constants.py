"""A test that leaves a changed constant of the program to the tests after it is named."""

from __future__ import annotations

import pytest

from functions._shared.auth import JwksCache
from functions.dialer import dialer

from ..support.constants import constants_left_as_found

pytestmark = pytest.mark.one_postgres


@pytest.mark.parametrize(
    ("holder", "constant"),
    [(JwksCache, "TIMEOUT_S"), (dialer, "LEASE_S")],
    ids=["of a class", "of a module"],
)
def test_a_constant_that_a_test_leaves_changed_is_named(
    monkeypatch: pytest.MonkeyPatch, holder: object, constant: str
) -> None:
    with pytest.raises(AssertionError, match=rf"changed constants.*: \S*\.{constant}$"), constants_left_as_found():
        monkeypatch.setattr(holder, constant, 600.0)


def test_a_constant_may_be_changed_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with constants_left_as_found(), monkeypatch.context() as patch:
        patch.setattr(JwksCache, "TIMEOUT_S", 600.0)
