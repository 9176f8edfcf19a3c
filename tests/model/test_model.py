"""Spin searches the model of the protocol in every state: it is right, and each mistake that is built in is found.

MODEL=all: with the large configurations, some of which take a minute and 3 GB.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

MODEL = Path(__file__).parent / "lastcall.pml"
ALL = os.environ.get("MODEL") == "all"
_DEPTH = 10_000

pytestmark = [
    pytest.mark.one_postgres,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("spin") is None, reason="spin is not installed: apt-get install spin"),
]

SMALL = {
    "one dialer": "DIALERS=1",
    "a carrier that queues": "DIALERS=1 QUEUE",
}
"""Configurations of some seconds."""
LARGE = {
    "two dialers": "",
    "two contacts, one of them added": "CONTACTS=2 DIALERS=1",
    "holds": "HOLDS",
    "a queue and two dialers": "QUEUE",
    "a crash": "CRASHES=1 ENDS=1",
    "a crash, and three claims": "CRASHES=1 ENDS=0 LEASES=3",
}
NO_START_AFTER_THE_REPLY = "promised_end"
SILENT = "promised_silence"
NOBODY_TWICE = "n_total==0"
BOOKS = "db.in_progress==n_in_progress"
ACCOUNTED_FOR = "db.status!=2"
NO_DEADLOCK = "invalid end state"
MUTANTS = {
    "STATUS_BEFORE_LOCK": ("HOLDS DIALERS=1", NO_START_AFTER_THE_REPLY),
    "RESUME_WITHOUT_FENCE": ("HOLDS DIALERS=1", NO_START_AFTER_THE_REPLY),
    "HOLD_SCANS_BEFORE_FENCE": ("HOLDS DIALERS=1", NO_START_AFTER_THE_REPLY),
    "FENCE_AFTER_LOCK": ("HOLDS DIALERS=1", NO_DEADLOCK),
    "REPLY_BEFORE_DISK": ("CRASHES=1 ENDS=1 DIALERS=1", NO_START_AFTER_THE_REPLY),
    "START_WITHOUT_DISK": ("CRASHES=1 ENDS=0", NOBODY_TWICE),
    "IDS_WITHOUT_LEASES": ("CRASHES=1 ENDS=0 LEASES=3", NOBODY_TWICE),
    "STAMP_AFTER_ANSWER": ("", NOBODY_TWICE),
    "RECONCILE_EARLY": ("", NOBODY_TWICE),
    "RELEASE_STARTED": ("", NOBODY_TWICE),
    "SILENCE_IGNORES_QUEUE": ("QUEUE", SILENT),
    "FINISH_TWICE": ("", BOOKS),
    "CANCEL_WITHOUT_LOCK": ("", ACCOUNTED_FOR),
    "ADD_WITHOUT_LOCK": ("CONTACTS=2 DIALERS=1", ACCOUNTED_FOR),
}
"""Each mistake, the configuration that shows it, and the property that it breaks."""


@dataclass(frozen=True)
class Search:
    """The result of a search by Spin."""

    errors: int
    states: int
    seconds: float
    error: str
    is_complete: bool


def search(folder: Path, flags: str) -> Search:
    """Search the model with these flags, until the first error."""
    shutil.copy(MODEL, folder)
    run = {"cwd": folder, "check": True, "capture_output": True, "text": True}
    subprocess.run(["spin", "-a", *(f"-D{flag}" for flag in flags.split()), MODEL.name], **run)  # type: ignore[call-overload]
    # One byte for each component of a state: the vector, not the search, is made smaller.
    subprocess.run(["gcc", "-O2", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=8000", "-o", "pan", "pan.c"], **run)  # type: ignore[call-overload]
    output = subprocess.run(["./pan", f"-m{_DEPTH}"], **run).stdout  # type: ignore[call-overload]
    (errors,) = re.findall(r"errors: (\d+)", output)
    (states,) = re.findall(r"^ *([\d.e+]+) states, stored", output, re.MULTILINE)
    (seconds,) = re.findall(r"elapsed time ([\d.e+-]+) seconds", output)
    error = "".join(re.findall(r"^pan:1: (.*)", output, re.MULTILINE))
    cut = re.search("Search not completed|max search depth too small|out of memory", output)
    return Search(int(errors), int(float(states)), float(seconds), error, cut is None)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "one dialer" else pytest.mark.long) for name in SMALL]
    + [pytest.param(name, marks=pytest.mark.skipif(not ALL, reason="make prove")) for name in LARGE],
)
def test_the_model_keeps_every_promise(tmp_path: Path, name: str) -> None:
    found = search(tmp_path, (SMALL | LARGE)[name])
    print(f"{name}: {found.states:,} states in {found.seconds:.1f} s, {found.errors} errors")
    assert (found.errors, found.error, found.is_complete) == (0, "", True)


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(name, marks=[] if name in ("FENCE_AFTER_LOCK", "FINISH_TWICE") else pytest.mark.long)
        for name in MUTANTS
    ],
)
def test_a_mistake_is_found(tmp_path: Path, mistake: str) -> None:
    flags, property_ = MUTANTS[mistake]
    found = search(tmp_path, f"{mistake} {flags}")
    print(f"{mistake}: found after {found.states:,} states: {found.error}")
    assert found.errors == 1
    assert property_ in found.error


def test_every_mistake_of_the_model_is_tried() -> None:
    flags = set(re.findall(r"#ifn?def ([A-Z_]+)", MODEL.read_text()))
    assert (
        flags
        - {"CONTACTS", "DIALERS", "LEASES", "ENDS", "TIME", "CRASHES", "QUEUE", "HOLDS"}
        - {
            "QUEUE_UNHEARD"  # no mistake that was made on purpose: README.md tells of it
        }
        == MUTANTS.keys()
    )
