"""The verdict of `lastcall prove`, read from its records alone: this module imports nothing of lastcall.

    python -m functions.prove.checker FOLDER        or        python checker.py FOLDER

carrier.jsonl   the carrier's record. "request": a request for a call came, seen `at`, and not before `not_before`.
                "end": a call ended.
ends.jsonl      what was asked, and what was promised. "batch": a batch was created. "end": calls were ended in a scope;
                asked and replied. Promised is that no request of the scope comes later than `silent_within_s` after
                `replied`, and none after `silent` (when the database said that no call can start any more), until
                `begin` was asked: a resume of the batch or a lift of the hold.
contacts.jsonl  what the database held at the end: contacts, and the counters of each batch.

All times are seconds of the monotonic clock of one machine. Exit status: 0 PASS, 1 FAIL.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HELD_S = 10.0
"""Holds of so many seconds, all told, are time enough for other batches to go on."""
SHOWN = 3
"""Violations of each rule that are printed."""


def read(path: Path, *events: str) -> list[Row]:
    """The lines of a record that tell of these events, in their order."""
    with path.open() as file:
        return [row for row in map(json.loads, file) if row["event"] in events]


def covers(end: Row, batch: Row) -> bool:
    """Whether a batch is in the scope of an end."""
    scope = end["scope"]
    if scope in ("batch", "contacts"):
        return bool(batch["batch"] == end["id"])
    return bool(batch["agency"] == end["agency"] and (scope == "number" or batch[scope] == end["id"]))


def named(end: Row, request: Row) -> bool:
    """Whether the end is about the contact of a request to a batch in its scope."""
    if end["scope"] == "contacts":
        return request["contact_id"] in end["contacts"]
    return end["scope"] != "number" or bool(request["to"] == end["id"])


def allows(begin: Row, end: Row) -> bool:
    """Whether a resume or a lift that is answered after an end was asked lets the calls of that end begin again."""
    if begin["what"] == "lift":
        return bool(begin["of"] == end["n"])
    return end["what"] in ("pause", "stop") and begin["id"] == end["id"] and begin["replied"] > end["asked"]


class Verdict:
    """The findings."""

    def __init__(self, folder: Path) -> None:
        self.violations: dict[str, list[str]] = {}
        """By the rule that was broken."""
        carrier, ends, books = (folder / f"{name}.jsonl" for name in ("carrier", "ends", "contacts"))
        self.requests = read(carrier, "request")
        self.batches = {row["batch"]: row for row in read(ends, "batch")}
        self.ends = read(ends, "end")
        self.refused = read(ends, "refused")
        self.raced: dict[int, Row] = {}
        """Requests that came after a reply, and in time, by their places in the record."""
        self.latest_s = 0.0
        """The most seconds between a reply and a request that came in time."""
        self.went_on: set[int] = set()
        """Requests, by their places, for calls that no hold reached, while others were held."""
        self._of: dict[str, list[tuple[int, Row]]] = defaultdict(list)
        for place, request in enumerate(self.requests):
            self._of[request["batch_id"]].append((place, request))
        self._check_silence(read(ends, "begin"))
        self._check_calls(read(carrier, "request", "end"))
        self._check_contacts(read(books, "contact"), {row["batch"]: row for row in read(books, "counters")})
        if not self.ends or not self.requests:
            self._found("there was a race", f"{len(self.ends)} ends, {len(self.requests)} requests")

    @property
    def holds(self) -> bool:
        return not self.violations

    def _found(self, rule: str, what: str) -> None:
        self.violations.setdefault(rule, []).append(what)

    def _check_silence(self, begins: list[Row]) -> None:
        held_s = 0.0
        for end in self.ends:
            until = min((begin["asked"] for begin in begins if allows(begin, end)), default=float("inf"))
            reached = [batch for batch in self.batches.values() if covers(end, batch)]
            silent = end.get("silent")
            for batch in reached:
                for place, request in self._of[batch["batch"]]:
                    if request["at"] <= end["replied"] or request["at"] >= until or not named(end, request):
                        continue
                    about = f"{_scope(end)} (end {end['n']})"
                    what = f"{_call(request)}, {request['at'] - end['replied']:.3f} s after the reply to {about}"
                    if request["not_before"] > end["replied"] + end["silent_within_s"]:
                        self._found(f"none arrives more than {end['silent_within_s']:g} s after a reply", what)
                    elif silent is not None and request["not_before"] > silent:
                        what += f", {request['at'] - silent:.3f} s after its silence"
                        self._found("none arrives after a reply that waited for silence", what)
                    else:
                        self.raced[place] = request
                        self.latest_s = max(self.latest_s, request["at"] - end["replied"])
            if end["what"] == "hold":
                held_s += until - end["replied"]
                held = {batch["batch"] for batch in reached}
                self.went_on |= {
                    place
                    for place, request in enumerate(self.requests)
                    if end["replied"] < request["at"] < until and request["batch_id"] not in held
                }
        if held_s >= HELD_S and not self.went_on:
            self._found("other batches go on while some are held", "no request of any other batch")

    def _check_calls(self, rows: list[Row]) -> None:
        seen: set[tuple[str, int, str]] = set()
        live: dict[tuple[str, int], Row] = {}
        for row in rows:  # in the carrier's own order
            call, contact = (row["batch_id"], row["call_id"], row["lease"]), (row["batch_id"], row["contact_id"])
            if row["event"] == "end":
                if contact in live and live[contact]["lease"] == row["lease"]:
                    del live[contact]
                continue
            if row["batch_id"] not in self.batches:
                self._found("the carrier gets calls of these batches alone", _call(row))
            if call in seen:
                self._found("no attempt is placed twice", _call(row))
            elif contact in live:
                self._found("no contact has two calls at a time", f"{_call(row)}, and call {live[contact]['call_id']}")
            seen.add(call)
            live[contact] = row

    def _check_contacts(self, contacts: list[Row], counters: dict[str, Row]) -> None:
        requests = Counter((row["batch_id"], row["contact_id"]) for row in self.requests)
        statuses: dict[str, Counter[str]] = defaultdict(Counter)
        for row in contacts:
            statuses[row["batch"]][row["status"]] += 1
            times, about = requests[row["batch"], row["contact"]], f"contact {row['contact']} of batch {row['batch']}"
            if row["status"] in ("queued", "in_progress"):
                self._found("no contact is left in the middle", f"{about} is {row['status']}")
            if times > row["attempts"] or (row["status"] == "completed" and not times):
                self._found(
                    "the database counts what the carrier saw",
                    f"{about}, {row['status']}: {row['attempts']} attempts, {times} requests",
                )
        for batch, given in self.batches.items():
            found, counted = statuses[batch], counters.get(batch, {})
            if found.total() != given["contacts"]:
                what = f"batch {batch}: {found.total()} of {given['contacts']} contacts"
                self._found("every contact is accounted for", what)
            if any(counted.get(status) != found[status] for status in ("completed", "failed", "skipped")):
                self._found("the counters are right", f"batch {batch}: {dict(found)}, counted {counted}")
            if counted.get("status") == "cancelled" and found["pending"] + found["scheduled"]:
                self._found("a cancelled batch has no contact left to call", f"batch {batch}: {dict(found)}")
        self.statuses = sum(statuses.values(), Counter())

    def lines(self) -> Iterator[str]:
        """The verdict, to be printed."""
        scopes = Counter(_scope(end) for end in self.ends)
        waited = sum(end.get("silent") is not None for end in self.ends)
        yield f"ends        {len(self.ends)}: " + ", ".join(f"{n} {scope}" for scope, n in sorted(scopes.items()))
        yield f"            {waited} waited for silence; {len(self.refused)} more were refused and promised nothing"
        yield f"requests    {len(self.requests):,} at the carrier, for contacts of {len(self.batches)} batches"
        yield f"raced       {len(self.raced)} came after a reply, and in time: {self.latest_s:.3f} s at most"
        yield f"went on     {len(self.went_on):,} requests of other batches while some were held"
        yield "contacts    " + ", ".join(f"{n:,} {status}" for status, n in sorted(self.statuses.items()))
        for rule, found in self.violations.items():
            yield f"BROKEN      {rule}: {len(found)}"
            yield from (f"            {what}" for what in found[:SHOWN])
        yield "PASS" if self.holds else "FAIL"


def _call(request: Row) -> str:
    return f"call {request['call_id']} of batch {request['batch_id'][:8]} at {request['at']:.3f}"


def _scope(end: Row) -> str:
    return f"hold of {end['scope']}" if end["what"] == "hold" else str(end["what"])


def main(folder: str) -> int:
    """Print the verdict on the records in a folder. Returns the exit status."""
    verdict = Verdict(Path(folder))
    print(*verdict.lines(), sep="\n")
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
