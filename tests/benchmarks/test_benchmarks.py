"""The benchmarks run, at sizes too small to say anything: lest they rot between two releases."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from . import cancel, claims, cold_start, held, imports, neighbours, overload, scopes, serving, silence, webhooks, wide
from .lab import Lab, open_lab

pytestmark = [pytest.mark.long, pytest.mark.one_postgres]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab() as lab:
        yield lab


def rows(section: str) -> list[list[str]]:
    """The cells of the table in a section, without its header."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_cancel_compares_all_ways_at_all_sizes(lab: Lab) -> None:
    found = rows(cancel.run(lab, sizes=[5, 20], runs=2, others=30))
    assert [row[0] for row in found] == [f"{size} {variant.name}" for size in (5, 20) for variant in cancel.VARIANTS]
    assert {row[1] for row in found} == {"8"}


def test_wide_rows_stay_in_line(lab: Lab) -> None:
    section = wide.run(lab, size=100, runs=1)
    assert len(rows(section)) == 2
    assert "in 0 of 100 rows it did" in section


def test_silence_measures_every_size(lab: Lab) -> None:
    found = rows(silence.run(lab, sizes=[1000, 2000], rounds=[1, 1], number=2))
    assert [row[:2] for row in found] == [["1,000", "1"], ["2,000", "1"]]


def test_claims_of_every_number_of_claimers(lab: Lab) -> None:
    report = claims.run(lab, runs=1, seconds=0.2, supply=320, numbers=[1, 2], contacts=[5])
    for section in report.split("### ")[1:]:
        found = rows(section)
        assert [row[0] for row in found] == ["1 by 5", "2 by 5"]
        assert all(re.fullmatch(r"[\d,.]+", cell) for row in found for cell in row[1:])


def test_webhooks_compares_all_sizes_of_a_run_with_the_usual_way(lab: Lab) -> None:
    found = rows(webhooks.run(lab, runs=1, events=20, groups=[1, 5]))
    assert [row[0] for row in found] == [
        "an update per event",
        "process_webhook_queue(1)",
        "process_webhook_queue(5)",
        "ingest_webhook, signed",
    ]


def test_imports_of_every_size(lab: Lab) -> None:
    found = rows(imports.run(lab, sizes=[20], runs=1))
    assert [row[0] for row in found] == ["20"]
    assert all(cell for row in found for cell in row)


def test_a_hold_of_many_batches_and_skips_of_every_kind(lab: Lab) -> None:
    (hold,) = rows(scopes.holds(lab, rounds=1, batches=20, size=20_000, number=2))
    assert all(hold)
    skipped = rows(scopes.skips(lab, runs=1, size=2000))
    assert [row[0] for row in skipped] == ["all, by cancel_batch", "2,000 ids", "by status", "by a column"]


def test_a_held_batch_and_a_cancelled_one_beside_one_that_is_dialed(lab: Lab) -> None:
    found = rows(held.run(lab, runs=1, held_s=1, size=2_000, contacts=2_000))
    assert [row[0] for row in found] == ["held for 1 s", "cancelled, 2,000 contacts"]
    assert all(float(row[2]) > 0 for row in found)


def test_a_cold_start_is_measured_to_its_first_replies(lab: Lab) -> None:
    started, loaded = cold_start.run(lab, runs=1).split("### ")[1:]
    assert [row[0] for row in rows(started)][-1] == "a second cancel"
    assert len(rows(loaded)) == cold_start.IMPORTS_SHOWN + 1
    assert rows(loaded)[-1][0] == "all"


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_serving_by_every_server_that_is_compared(lab: Lab) -> None:
    found = rows(serving.run(lab, runs=1, seconds=1, connections=[2], most=6000))
    assert [row[0] for row in found] == [f"2: {variant}" for variant in serving.VARIANTS]


def test_overload_measures_every_moment(lab: Lab) -> None:
    found = rows(overload.run(lab, runs=1))
    assert [row[1] for row in found] == ["1"] * 4


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_neighbours_measures_every_situation_and_refuses_no_cancel(lab: Lab) -> None:
    found = rows(neighbours.run(lab, runs=1, stopped=100, cancels=2))
    assert [row[1] for row in found] == ["2"] * 4
    assert [row[-1] for row in found] == ["0"] * 4
