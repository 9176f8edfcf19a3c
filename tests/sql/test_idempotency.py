"""With an idempotency key, the repeat of a request gets the first answer again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest

from ..support.database import TestDatabase

CALLS = ["cancel_batch(%(batch)s, idempotency_key => %(key)s, reason => %(reason)s)",
         "stop_batch(%(batch)s::text, %(user)s::text, idempotency_key => %(key)s, reason => %(reason)s)"]  # fmt: skip


def world(db: TestDatabase) -> tuple[UUID, UUID]:
    agency = db.agency()
    user = db.user(agency)
    batch = db.batch(agency, user)
    db.contacts(batch, pending=3, queued=2)
    return user, batch


def ask(db: TestDatabase, call: str, user: UUID, batch: UUID, key: str | None, reason: str = "why") -> Any:
    values = {"batch": batch, "user": user, "key": key, "reason": reason}
    with db.as_user(user) as connection:
        return connection.execute(f"select * from {call}", values).fetchone()


@pytest.mark.parametrize("call", CALLS)
def test_a_repeat_gets_the_first_answer_and_changes_nothing(db: TestDatabase, call: str) -> None:
    user, batch = world(db)
    first = ask(db, call, user, batch, "key-1")
    before = db.state()
    assert ask(db, call, user, batch, "key-1") == first
    assert db.state() == before


def test_a_repeat_is_answered_even_after_the_batch_went_on_to_another_status(db: TestDatabase) -> None:
    user, batch = world(db)
    first = ask(db, CALLS[1], user, batch, "key-1")
    ask(db, CALLS[0], user, batch, "key-2")
    assert ask(db, CALLS[1], user, batch, "key-1") == first


@pytest.mark.parametrize("call", CALLS)
def test_the_same_key_with_another_request_is_refused_with_pt409(db: TestDatabase, call: str) -> None:
    user, batch = world(db)
    ask(db, call, user, batch, "key-1")
    agency = db.value("select agency_id from users where id = %s", user)
    other_batch, other_user = db.batch(agency, user), db.user(agency)
    other_call = CALLS[1 - CALLS.index(call)]
    before = db.state()
    for repeated in [
        lambda: ask(db, call, user, batch, "key-1", reason="another"),
        lambda: ask(db, call, user, other_batch, "key-1"),
        lambda: ask(db, other_call, user, batch, "key-1"),
        lambda: ask(db, CALLS[0], other_user, batch, "key-1"),
    ]:
        with pytest.raises(psycopg.Error) as refused:
            repeated()
        assert refused.value.sqlstate == "PT409"
    assert db.state() == before


def test_another_form_of_the_same_id_is_another_request(db: TestDatabase) -> None:
    user, batch = world(db)
    db.rows("update call_batches set external_id = 'spring'")
    ask(db, CALLS[1], user, batch, "key-1")
    with pytest.raises(psycopg.Error) as refused:
        ask(db, CALLS[1], user, "spring", "key-1")  # type: ignore[arg-type]
    assert refused.value.sqlstate == "PT409"


def test_a_key_belongs_to_one_agency(db: TestDatabase) -> None:
    for _ in range(2):
        user, batch = world(db)
        assert ask(db, CALLS[0], user, batch, "key-1")["contacts_skipped"] == 5


def test_a_repeat_by_someone_who_may_no_longer_is_refused(db: TestDatabase) -> None:
    user, batch = world(db)
    ask(db, CALLS[0], user, batch, "key-1")
    db.rows("update users set role = 'agency_member' where id = %s", user)
    with pytest.raises(psycopg.Error) as refused:
        ask(db, CALLS[0], user, batch, "key-1")
    assert refused.value.sqlstate == "PT403"


def test_a_refused_request_leaves_its_key_free(db: TestDatabase) -> None:
    user, batch = world(db)
    db.rows("update call_batches set status = 'completed'")
    with pytest.raises(psycopg.Error):
        ask(db, CALLS[0], user, batch, "key-1")
    db.rows("update call_batches set status = 'processing'")
    assert ask(db, CALLS[0], user, batch, "key-1")["contacts_skipped"] == 5


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_that_is_none_is_refused_with_pt400(db: TestDatabase, key: str) -> None:
    user, batch = world(db)
    for call in CALLS:
        with pytest.raises(psycopg.Error) as refused:
            ask(db, call, user, batch, key)
        assert refused.value.sqlstate == "PT400"


@pytest.mark.parametrize("call", CALLS)
def test_concurrent_equal_requests_all_get_the_one_answer(db: TestDatabase, call: str) -> None:
    user, batch = world(db)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(db, call, user, batch, "key-1"), range(8)))
    assert answers == [answers[0]] * 8
    assert db.value("select count(*) from batch_events") == 1


def test_concurrent_different_requests_under_one_key_exactly_one_is_done(db: TestDatabase) -> None:
    user, _ = world(db)
    agency = db.value("select agency_id from users where id = %s", user)
    batches = [db.batch(agency, user) for _ in range(8)]

    def attempt(batch: UUID) -> str:
        try:
            return str(ask(db, CALLS[0], user, batch, "key-1")["status"])
        except psycopg.Error as error:
            return str(error.sqlstate)

    with ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(attempt, batches))
    assert answers == ["PT409"] * 7 + ["cancelled"]
    assert db.value("select count(*) from call_batches where status = 'cancelled'") == 1
