"""The soak in short: `make soak` runs it in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support.servers import new_server
from .soak import Plan, soak

pytestmark = [pytest.mark.long, pytest.mark.one_postgres]


def test_everything_at_once_keeps_every_promise(own_folder: Path) -> None:
    plan = Plan(
        batches=12, contacts=60, dialers=3, killed=1, dial_s=12, drain_s=90, changes_a_second=3, reconcile_after_s=20
    )
    server = new_server(own_folder / "postgres")
    server.start()
    try:
        report = soak(plan, server, own_folder)
    finally:
        server.stop()
    assert report.holds, "\n".join(report.lines())
