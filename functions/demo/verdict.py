"""Whether the promise was kept: judged from the reply, the carrier's record and the database.

At the gate, no call passes start_call after the reply. The database shows it, twice:

- by transactions: the call was there, started, when the database was looked at right after the reply;
- by time: start_call reads the clock for calls.started_at, and cancel and stop read it for their line
  in batch_events, while they hold the batch's lock, hence in the order of the transactions; the
  call's time is the earlier one.

A call that fails either counts as started after the reply, whether it reached the carrier or not.

At the carrier, a call that had passed start_call before may still arrive until the place-by time is
over, and none arrives after a reply that waited for silence. Every arrival of the carrier's record
counts, and nothing is subtracted.

A pause is judged alike, from its reply to the request to resume: what the database shows, by
transactions, just before that request, and whatever start_call let through, by time, in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..dialer.simulated_carrier import CarrierCall

CallName = tuple[int, str]
"""The id and the lease of a call, which together name it."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A function's reply, and when: seconds of the monotonic clock."""

    sent_at: float
    """Just before the request was sent."""
    replied_at: float
    """Just after the reply was read."""
    status_code: int
    batch_status: str | None
    """The status of the batch by the reply."""
    contacts_skipped: int | None
    """The skipped contacts by the reply; None: the reply does not count them."""
    started_before: frozenset[CallName]
    """The calls of the batch that start_call had let through, as the database showed just before the request."""
    started_calls: frozenset[CallName]
    """The same, right after the reply."""
    silent_within_s: float
    """For how many seconds after the reply calls may still reach the carrier, as promised."""


@dataclass(frozen=True, kw_only=True)
class Books:
    """The state of a batch in the database."""

    status: str
    contacts: Mapping[str, int]
    """How many contacts have each status."""
    started: Mapping[CallName, bool]
    """The calls that start_call let through, and whether that was before the cancel or stop, by time."""
    placed: Mapping[CallName, tuple[str, str]]
    """The carrier's id and the status of the calls that the carrier is known to have."""
    webhooks: Mapping[str, int]
    """How many events have each status; `late`: ignored, because the call was over already."""
    unbalanced: Sequence[str]
    """The rows of private.check_counters(), as text."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold."""

    holds: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The findings about one batch."""

    checks: Sequence[Check]
    notes: Sequence[str]
    """Facts worth telling that decide nothing."""

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)


def judge(ended: str, contacts: int, reply: Reply, record: Sequence[CarrierCall], books: Books) -> Verdict:
    """The verdict on one batch, when its calls in progress have ended.

    ended: the batch status that the request was for, cancelled or stopped. contacts: how many the batch
    was given. record: the carrier's, of this batch.
    """
    started_before = {name for name in reply.started_calls if books.started.get(name)}
    started_late = len(books.started.keys() - started_before)
    strangers = sum(call.name not in books.started for call in record)
    repeated = sum(n - 1 for n in Counter(call.name for call in record).values())
    open_statuses = {"queued", "in_progress", *(("pending", "scheduled") if ended == "cancelled" else ())}
    left_open = {status: n for status, n in books.contacts.items() if status in open_statuses}
    told = reply.contacts_skipped
    skipped = books.contacts.get("skipped", 0)
    checks = [
        _nothing_started("after the reply", started_late),
        _silent("after the reply", reply, record),
        Check(
            strangers == repeated == 0,
            f"calls at the carrier: {len(record):,}, of which {strangers} never passed start_call, "
            f"{repeated} were placed twice",
        ),
        _same_results(record, books),
        _webhooks_applied(record, books),
        Check(
            sum(books.contacts.values()) == contacts and not left_open,
            f"contacts accounted for: {sum(books.contacts.values()):,} of {contacts:,} "
            f"({_by_status(books.contacts)})" + (f"; left open: {_by_status(left_open)}" if left_open else ""),
        ),
        Check(
            not books.unbalanced,
            "counters balanced: " + ("yes" if not books.unbalanced else f"no, {'; '.join(books.unbalanced)}"),
        ),
        Check(
            reply.status_code == 200
            and reply.batch_status == ended == books.status
            and (told is None or told == skipped),
            f"the reply is true: {reply.status_code}, batch {reply.batch_status}"
            + (f", {told:,} contacts skipped" if told is not None else "")
            + f"; the database: {books.status}, {skipped:,} skipped",
        ),
    ]
    return Verdict(checks=checks, notes=_notes(reply, record))


def judge_pause(
    pause: Reply,
    resume: Reply,
    record: Sequence[CarrierCall],
    started: Collection[CallName],
    started_while_paused: frozenset[CallName],
) -> Verdict:
    """The verdict on the pause of a batch that was resumed.

    record: the carrier's, of this batch. started: the calls that start_call let through in all.
    started_while_paused: those of between the pause and the resume, by time.
    """
    between = "between the pause's reply and the resume's request"
    started_late = (resume.started_before - pause.started_calls) | started_while_paused
    went_on = len(set(started) - resume.started_before)
    return Verdict(
        checks=[
            _nothing_started(between, len(started_late)),
            _silent(between, pause, [call for call in record if call.arrived_at < resume.sent_at]),
            Check(
                (pause.status_code, pause.batch_status) == (200, "paused")
                and (resume.status_code, resume.batch_status) == (200, "processing")
                and went_on > 0,
                f"the replies are true: {pause.status_code}, batch {pause.batch_status}; {resume.status_code}, batch "
                f"{resume.batch_status}, and {went_on:,} calls started then",
            ),
        ],
        notes=[f"paused for {resume.sent_at - pause.replied_at:.1f} s; request to reply: {_request_to_reply(pause)}"],
    )


def events_to_tell(record: Sequence[CarrierCall]) -> int:
    """How many events the carrier has to tell of calls that are over: started and joined, if they were, and ended."""
    return sum(1 + (call.dialed_at is not None) + (call.joined_at_utc is not None) for call in record)


def _nothing_started(when: str, started_late: int) -> Check:
    return Check(started_late == 0, f"calls that passed start_call {when}: {started_late}")


def _silent(when: str, reply: Reply, record: Sequence[CarrierCall]) -> Check:
    after = [call.arrived_at - reply.replied_at for call in record if call.arrived_at > reply.replied_at]
    latest_s = max(after, default=0.0)
    promised = f"none after {_ms(reply.silent_within_s)}" if reply.silent_within_s else "none, since the reply waited"
    return Check(
        latest_s <= reply.silent_within_s,
        f"calls that reached the carrier {when}: {len(after)}"
        + (f", the last after {_ms(latest_s)}" if after else "")
        + f" (promised: {promised})",
    )


def _same_results(record: Sequence[CarrierCall], books: Books) -> Check:
    told = {call.name: (call.carrier_call_id, call.status) for call in record}
    names = told.keys() | books.placed.keys()
    same = sum(told.get(name) == books.placed.get(name) for name in names)
    return Check(
        same == len(names),
        f"results as the carrier has them: {same:,} of {len(names):,} calls "
        f"({_by_status(Counter(call.status for call in record))})",
    )


def _webhooks_applied(record: Sequence[CarrierCall], books: Books) -> Check:
    stored = sum(books.webhooks.values())
    applied, late = books.webhooks.get("completed", 0), books.webhooks.get("late", 0)
    left = {status: n for status, n in books.webhooks.items() if status not in ("completed", "late")}
    return Check(
        stored == events_to_tell(record) and not left,
        f"webhooks: {sum(call.webhooks for call in record):,} came of {events_to_tell(record):,} events; "
        f"{applied:,} applied, {late:,} ignored as too late, left: {_by_status(left)}",
    )


def _notes(reply: Reply, record: Sequence[CarrierCall]) -> list[str]:
    going_on = [call for call in record if call.ended_at is None or call.ended_at > reply.replied_at]
    notes = [f"calls in progress at the reply, left to end by themselves: {len(going_on)}"]
    notes.append(f"request to reply: {_request_to_reply(reply)}")
    silence = max((call.arrived_at for call in record), default=reply.sent_at) - reply.sent_at
    notes.append(
        f"request to silence: {_ms(silence)}, then the last call reached the carrier"
        if silence > 0
        else f"request to silence: 0 ms, the last call had reached the carrier {_ms(-silence)} before"
    )
    return notes


def _by_status(contacts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {status}" for status, n in contacts.items() if n) or "none"


def _request_to_reply(reply: Reply) -> str:
    return _ms(reply.replied_at - reply.sent_at)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"
