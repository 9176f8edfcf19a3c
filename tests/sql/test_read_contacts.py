"""One request reads a bounded number of contacts, and following the cursor misses none."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from ..support.database import TestDatabase
from ..support.statistics import flush, rows_read

pytestmark = pytest.mark.own_database

MAX_READ = 20_000
STATISTICS = ["none", "of small batches", "of this batch"]


def large(db: TestDatabase, statistics: str, contacts: int = 60_000) -> UUID:
    """A batch of which contacts no. 25,000 and 59,990 are failed, and all others completed."""
    agency = db.agency()
    for table in ("campaign_contacts", "calls", "contact_data", "call_batches"):
        db.rows(f"alter table {table} set (autovacuum_enabled = off)")
    if statistics == "of small batches":
        for _ in range(40):
            db.contacts(db.batch(agency, status="completed"), completed=5)
        db.rows("analyze")
    batch = db.batch(agency, external_id="large")
    db.contacts(batch, completed=contacts)
    first = db.value("select min(id) from campaign_contacts where batch_id = %s", batch)
    db.rows(
        "update campaign_contacts set status = 'failed' where batch_id = %s and id in (%s, %s)",
        batch, first + 24_999, first + 59_989,
    )  # fmt: skip
    db.rows("update call_batches set completed = completed - 2, failed = 2 where id = %s", batch)
    db.rows(
        "insert into contact_data (agency_id, batch_id, contact_id, first_name)"
        " select agency_id, batch_id, id, 'Ada' from campaign_contacts where batch_id = %s",
        batch,
    )
    if statistics == "of this batch":
        db.rows("analyze")
    return batch


def ids(page: dict[str, Any]) -> list[int]:
    return [int(contact["id"]) for contact in page["contacts"]]


@pytest.mark.parametrize("statistics", STATISTICS)
def test_a_page_deep_in_a_large_batch_reads_a_few_rows(db: TestDatabase, statistics: str) -> None:
    batch = large(db, statistics)
    first = db.value("select min(id) from campaign_contacts where batch_id = %s", batch)
    deep = str(first + 50_000)
    pages = {
        "get_batch(%(batch)s, contact_limit => 50)": 600,
        "get_batch(%(batch)s, contact_limit => 50, contact_after => %(deep)s)": 600,
        "get_batch(%(batch)s, 'completed', 50, contact_after => %(deep)s)": 600,
        "export_contacts(%(batch)s, %(deep)s, 50)": 600,
        "get_user_batch('large', page => 3, page_size => 10)": 300,
        "get_user_batch('large', page => 3, page_size => 10, descending => true)": 300,
        # The most that is looked through, and for the end once more.
        "get_batch(%(batch)s, 'failed')": 2 * MAX_READ + 300,
        "get_user_batch('large', call_status => 'failed')": MAX_READ + 300,
        "get_user_batch('large', search => 'nobody')": 2 * MAX_READ + 300,
    }
    with db.connect() as connection:
        for call in pages:
            connection.execute(f"select {call}", {"batch": batch, "deep": deep})
        flush(db.owner)
        for call, most in pages.items():
            flush(connection)
            before = rows_read(db)
            connection.execute(f"select {call}", {"batch": batch, "deep": deep})
            flush(connection)
            after = rows_read(db)
            assert sum(after[table] - before[table] for table in after) <= most, call


def test_a_rare_status_is_found_by_following_the_cursor(db: TestDatabase) -> None:
    batch = large(db, "none")
    first = db.value("select min(id) from campaign_contacts where batch_id = %s", batch)
    pages = [db.value("select get_batch(%s, 'failed')", batch)]
    while cursor := pages[-1]["contact_pagination"]["next_cursor"]:
        assert pages[-1]["contact_pagination"]["has_more"]
        pages.append(db.value("select get_batch(%s, 'failed', contact_after => %s)", batch, cursor))
    # 60,000 are three times what one request looks through, and the last one finds the end.
    assert [ids(page) for page in pages] == [[], [first + 24_999], [first + 59_989], []]
    assert {page["contact_pagination"]["total"] for page in pages} == {2}


def test_pages_by_cursor_hold_every_contact_once_while_contacts_are_added(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=10, completed=5, failed=10)
    found, cursor = [], None
    while True:
        page = db.value("select get_batch(%s, contact_limit => 7, contact_after => %s)", batch, cursor)
        found += ids(page)
        if len(found) == 7:
            db.contacts(batch, skipped=4)
            db.rows("update campaign_contacts set status = 'pending' where status = 'failed'")
            db.rows("update call_batches set failed = 0")
        cursor = page["contact_pagination"]["next_cursor"]
        if cursor is None:
            break
    assert found == [row["id"] for row in db.rows("select id from campaign_contacts order by id")]
    assert len(found) == 29


def test_a_page_that_ends_with_the_last_contact_leads_no_further(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=4)
    for call in ("get_batch(%s, contact_limit => 4)", "get_batch(%s, 'pending', 2, 2)", "get_batch(%s, null, 50, 9)"):
        assert db.value(f"select {call} -> 'contact_pagination'", batch)["next_cursor"] is None


def test_totals_come_from_the_counters_and_what_these_do_not_tell_apart_is_counted_in_small_batches(
    db: TestDatabase,
) -> None:
    numbers = {"pending": 6, "scheduled": 5, "queued": 1, "in_progress": 2, "completed": 3, "failed": 4, "skipped": 7}
    batch = db.batch(db.agency())
    db.contacts(batch, **numbers)
    totals = {
        status: db.value("select get_batch(%s, %s) -> 'contact_pagination' -> 'total'", batch, status)
        for status in numbers
    }
    assert totals == numbers
    assert db.value("select get_batch(%s) -> 'contact_pagination' -> 'total'", batch) == 28


def test_in_a_large_batch_pending_and_scheduled_contacts_are_not_counted(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=MAX_READ)
    total = "select get_batch(%s, %s) -> 'contact_pagination' -> 'total'"
    assert db.value(total, batch, "pending") == MAX_READ
    db.contacts(batch, scheduled=1)
    assert (db.value(total, batch, "pending"), db.value(total, batch, "scheduled")) == (None, None)
    assert db.value(total, batch, "completed") == 0
    db.rows("update campaign_contacts set status = 'skipped'")
    db.rows("update call_batches set skipped = total_contacts")
    assert (db.value(total, batch, "pending"), db.value(total, batch, "scheduled")) == (0, 0)


def test_a_larger_batch_than_can_be_looked_through_is_sorted_by_upload_alone(db: TestDatabase) -> None:
    batch = large(db, "none", 59_990)
    with pytest.raises(psycopg.Error) as refused:
        db.rows("select get_user_batch('large', sort_by => 'phoneNumber')")
    assert refused.value.sqlstate == "PT400"
    whole = db.value("select get_user_batch('large', page => 2000)")
    assert (whole["total"], whole["totalPages"], whole["totalIsExact"]) == (59_990, 5_999, True)
    assert len(whole["data"]) == 10
    # The newest 20,000 hold one of the two, the oldest none.
    for newest, found in ((True, 1), (False, 0)):
        part = db.value("select get_user_batch('large', call_status => 'failed', descending => %s)", newest)
        assert (part["total"], part["totalIsExact"]) == (found, False)
    with pytest.raises(psycopg.Error) as refused:
        db.rows("select get_user_batch('large', page => 2001)")
    assert refused.value.sqlstate == "PT400"
    assert db.batch_row(batch)["failed"] == 2


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "1 ", "9" * 19, "0x1", "1\n", "\u0661"])
def test_a_value_that_is_no_cursor_is_refused(db: TestDatabase, cursor: str) -> None:
    batch = db.batch(db.agency())
    for call in ("get_batch(%(batch)s, contact_after => %(cursor)s)", "export_contacts(%(batch)s, %(cursor)s)",
                 "list_batch_events(%(batch)s, after => %(cursor)s)", "list_batches(after => %(cursor)s)"):  # fmt: skip
        with pytest.raises(psycopg.Error) as refused:
            db.owner.execute(f"select {call}", {"batch": batch, "cursor": cursor})
        assert refused.value.sqlstate == "PT400"
        assert "cursor_invalid" in str(refused.value.diag.message_detail)
