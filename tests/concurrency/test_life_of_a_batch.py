"""Whatever is called in whatever order, the books balance after every step."""

from __future__ import annotations

import json
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

import hypothesis.strategies as st
import psycopg
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from ..support.database import TestDatabase
from ..support.examples import examples, print_seed, seeded
from ..support.webhooks import event, missed

OVER = ("completed", "failed", "skipped")
PLACES = st.integers(min_value=0, max_value=1)
NUMBERS = st.integers(0, 9).map(lambda n: f"+1555000000{n}")
OUTCOMES = ["busy", "refused"]
RULES = [
    "calling_start = null, calling_end = null",
    "(calling_start, calling_end) = (select (t + interval '2 hours')::time, (t + interval '3 hours')::time"
    " from (select now() at time zone 'UTC' as t) utc)",
    "max_calls_per_number = 1",
    "max_calls_per_number = null",
    "retry_outcomes = '{busy}'",
]


class Call(NamedTuple):
    """A call as its claim told it."""

    batch: UUID
    id: int
    lease: str


class Life(RuleBasedStateMachine):
    """Two batches of two agencies, and everyone who acts on them."""

    db: ClassVar[TestDatabase]
    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[UUID] = []
        self.owners: list[UUID] = []
        self.calling: list[dict[str, Any]] = []
        self.over: dict[int, str] = {}
        """Contacts that are done with: what they ended as."""
        self.cancelled: dict[UUID, int] = {}
        """Cancelled batches: how many of their calls had started."""
        for name in ("One", "Other"):
            agency = self.db.agency(name)
            self.owners.append(self.db.user(agency))
            self.calling.append(self.db.calling(agency))
            self.batches.append(self.db.batch(agency, self.owners[-1], status="pending", retry_delay_seconds=0))

    def teardown(self) -> None:
        self.db.rows("delete from agencies")

    def ask(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """As the console; a refusal is an answer like another."""
        try:
            return self.db.rows(query, *values)
        except psycopg.Error as error:
            assert (error.sqlstate or "").startswith("PT4"), error
            return []

    @rule(place=PLACES, numbers=st.lists(NUMBERS, min_size=1, max_size=5), attempts=st.integers(1, 3))
    def add_contacts(self, place: int, numbers: list[str], attempts: int) -> None:
        contacts = json.dumps([{"phone_number": number, "max_attempts": attempts} for number in numbers])
        self.ask("select add_contacts(%s, %s)", self.batches[place], contacts)

    @rule()
    def process(self) -> None:
        self.ask("select process_batches()")

    @rule(target=calls, number=st.integers(1, 4))
    def claim(self, number: int) -> Any:
        claimed = self.ask("select * from claim_contacts(%s)", number)
        return multiple(*(Call(row["batch_id"], row["call_id"], str(row["lease"])) for row in claimed))

    @rule(call=calls)
    def start(self, call: Call) -> None:
        self.ask("select start_call(%s, %s, %s)", call.batch, [call.id], call.lease)

    @rule(call=calls, status=st.sampled_from(["completed", "failed", "unknown"]), outcome=st.sampled_from(OUTCOMES))
    def finish(self, call: Call, status: str, outcome: str) -> None:
        result = {"call_id": call.id, "lease": call.lease, "status": status, "outcome": outcome}
        self.ask("select finish_call(%s, %s)", call.batch, json.dumps([result]))

    @rule(call=calls)
    def confirm(self, call: Call) -> None:
        confirmed = {"call_id": call.id, "lease": call.lease, "carrier_call_id": f"carrier-{call.id}"}
        self.ask("select confirm_call(%s, %s)", call.batch, json.dumps([confirmed]))

    @rule(place=PLACES, numbers=st.lists(NUMBERS, min_size=1, max_size=3))
    def create(self, place: int, numbers: list[str]) -> None:
        contacts = json.dumps([{"phone_number": number, "max_attempts": 2} for number in numbers])
        given = [self.calling[place][name] for name in ("agent_mapping_id", "from_number", "campaign_id")]
        self.ask("select create_batch(%s, %s, %s, %s)", *given, contacts)

    @rule(place=PLACES, numbers=st.lists(NUMBERS | st.just("none"), min_size=1, max_size=3), file=st.integers(0, 3))
    def import_file(self, place: int, numbers: list[str], file: int) -> None:
        batch = self.batches[place]
        rows = json.dumps([{"row": row, "phone_number": number} for row, number in enumerate(numbers, 2)])
        begun = self.ask("select begin_import(%s, repeat(%s, 64)) ->> 'import_id' as id", batch, str(file))
        for step in begun:
            self.ask("select import_contacts(%s, %s, %s)", batch, step["id"], rows)
            self.ask("select finish_import(%s, %s)", batch, step["id"])

    @rule(call=calls, event_type=st.sampled_from(["call.started", "call.joined", "call.ended"]), joined=st.booleans())
    def report(self, call: Call, event_type: str, joined: bool) -> None:
        about = {"batch_id": call.batch, "call_id": call.id, "lease": call.lease}
        told = event(event_type, about) if joined else missed(about)
        self.db.rows(
            "insert into webhook_queue (agency_id, event_id, event_type, payload)"
            " select agency_id, gen_random_uuid()::text, %s, %s from call_batches where id = %s",
            told["event"],
            json.dumps(told),
            call.batch,
        )

    @rule()
    def apply_reports(self) -> None:
        # A run begins no further batch after 50 ms: what one of them leaves must not depend on the machine.
        while self.ask("select process_webhook_queue() -> 'processed' as done")[0]["done"]:
            pass
        assert self.db.rows("select error_message from webhook_queue where status in ('failed', 'dead')") == []

    @rule(place=PLACES, numbers=st.none() | st.lists(NUMBERS, min_size=1, max_size=3))
    def start_batch(self, place: int, numbers: list[str] | None) -> None:
        data = None if numbers is None else json.dumps([{"phoneNumber": number} for number in numbers])
        self.ask("select start_batch(%s, call_data => %s)", str(self.batches[place]), data)

    @rule(place=PLACES)
    def retry(self, place: int) -> None:
        self.ask("select retry_batch(%s)", self.batches[place])

    @rule(place=PLACES, number=NUMBERS)
    def do_not_call(self, place: int, number: str) -> None:
        self.db.rows(
            "insert into do_not_call select agency_id, %s from call_batches where id = %s on conflict do nothing",
            number,
            self.batches[place],
        )

    @rule(place=PLACES, rules=st.sampled_from(RULES))
    def set_rules(self, place: int, rules: str) -> None:
        self.db.rows(f"update call_batches set {rules}, next_claim_at = now() where id = %s", self.batches[place])

    @rule()
    def lose_leases_and_release(self) -> None:
        self.ask("update calls set lease_expires_at = clock_timestamp() where status = 'queued'")
        self.ask("select release_expired_leases()")

    @rule(place=PLACES, key=st.sampled_from([None, "key-1", "key-2"]))
    def cancel(self, place: int, key: str | None) -> None:
        self.ask("select cancel_batch(%s, %s)", self.batches[place], key)

    @rule(place=PLACES, skip=st.booleans(), key=st.sampled_from([None, "key-1", "key-2"]))
    def stop(self, place: int, skip: bool, key: str | None) -> None:
        query = "select stop_batch(%s, %s, %s, %s)"
        self.ask(query, str(self.batches[place]), str(self.owners[place]), skip, key)

    @rule(place=PLACES)
    def pause(self, place: int) -> None:
        self.ask("select pause_batch(%s)", self.batches[place])

    @rule(place=PLACES)
    def resume(self, place: int) -> None:
        self.ask("select resume_batch(%s)", self.batches[place])

    @rule(place=PLACES)
    def recount(self, place: int) -> None:
        before = self.db.batch_row(self.batches[place])
        self.ask("select private.recount_batch(%s)", self.batches[place])
        assert self.db.batch_row(self.batches[place]) == before

    @invariant()
    def the_books_balance(self) -> None:
        assert self.db.unbalanced() == []

    @invariant()
    def an_operator_is_told_so(self) -> None:
        must_be_zero = "name in ('calls_started_after_end', 'unbalanced_batches')"
        assert self.db.rows(f"select name, label from service_stats() where {must_be_zero} and value <> 0") == []

    @invariant()
    def every_queued_contact_has_one_lease_and_every_talking_one_a_call(self) -> None:
        odd = self.db.rows(
            "select c.id, c.status, count(k.id) from campaign_contacts c left join calls k"
            " on k.agency_id = c.agency_id and k.batch_id = c.batch_id and k.contact_id = c.id"
            " and k.status in ('queued', 'in_progress', 'unknown')"
            " and (k.status::text = c.status::text or (k.status, c.status) = ('unknown', 'in_progress'))"
            " group by c.id, c.status"
            " having count(k.id) <> case when c.status in ('queued', 'in_progress') then 1 else 0 end"
        )
        assert odd == []

    @invariant()
    def a_contact_is_called_as_often_as_it_says_and_no_more_than_it_may(self) -> None:
        odd = self.db.rows(
            "select c.id from campaign_contacts c where c.attempts > c.max_attempts or c.attempts <>"
            " (select count(*) from calls k where k.contact_id = c.id and k.started_at is not null)"
        )
        assert odd == []

    @invariant()
    def no_call_starts_to_a_number_on_the_list(self) -> None:
        odd = self.db.rows(
            "select c.id from campaign_contacts c join do_not_call n on n.agency_id = c.agency_id"
            " and n.phone_number = c.phone_number join calls k on k.contact_id = c.id"
            " where k.started_at > n.created_at"
        )
        assert odd == []

    @invariant()
    def what_is_over_stays_over(self) -> None:
        now = {row["id"]: row["status"] for row in self.db.rows("select id, status::text from campaign_contacts")}
        assert {contact: now[contact] for contact in self.over} == self.over
        self.over = {contact: status for contact, status in now.items() if status in OVER}

    @invariant()
    def a_cancelled_batch_has_nothing_to_call_and_starts_no_call(self) -> None:
        for row in self.db.rows(
            "select b.id, count(k.id) filter (where k.started_at is not null) as started,"
            " count(k.id) filter (where k.status = 'queued') as leases"
            " from call_batches b left join calls k on k.batch_id = b.id where b.status = 'cancelled' group by b.id"
        ):
            assert row["leases"] == 0
            assert self.db.statuses(row["id"]).keys() <= {"in_progress", *OVER}
            assert self.cancelled.setdefault(row["id"], row["started"]) == row["started"]


def test_the_books_balance_after_every_step(db: TestDatabase) -> None:
    Life.db = db
    print_seed()
    run_state_machine_as_test(seeded(Life), settings=examples(80, stateful_step_count=40))
