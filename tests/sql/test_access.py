"""No agency ever sees or touches another's row, by any door; and nobody has more than they need."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from ..support.database import TestDatabase, log_in_as

BACKEND = ("agencies", "users", "campaigns", "agent_mappings", "agency_phone_numbers", "do_not_call")
"""Tables that the backend fills by plain inserts."""
TABLES = (*BACKEND, "call_batches", "campaign_contacts", "contact_data", "calls", "batch_events", "webhook_queue",
          "batch_imports", "import_errors", "holds")  # fmt: skip
ADMINS = ("agency_owner", "agency_admin")
# The procedures that each role may execute; only the owner may execute any other in public and private.
PEOPLE = {
    "public.list_user_batches", "private.list_user_batches",
    *(
        f"{schema}.{name}"
        for schema in ("public", "private")
        for name in (
            "create_batch", "add_contacts", "start_batch", "retry_batch",
            "check_import", "begin_import", "import_contacts", "finish_import", "list_import_errors",
            "cancel_batch", "stop_batch", "pause_batch", "resume_batch",
            "skip_contacts", "opt_out", "hold_calls", "lift_hold", "list_holds",
            "list_batches", "get_batch", "get_user_batch", "list_batch_events", "export_contacts", "batch_silence",
            "rotate_webhook_secret", "list_dead_webhooks", "replay_webhooks",
        )
    ),
    "private.find_batch_agency", "private.find_user_batch", "private.find_agent_agency",
    "private.calling_time",
}  # fmt: skip
SERVICE = PEOPLE | {
    f"{schema}.{name}"
    for schema in ("public", "private")
    for name in (
        "claim_contacts", "start_call", "confirm_call", "finish_call", "release_expired_leases", "process_batches",
        "ingest_webhook", "process_webhook_queue", "purge_webhook_queue",
        "next_claim_in", "list_open_calls", "list_calls_to_end", "service_stats",
    )
} | {"private.check_counters", "private.recount_batch"}  # fmt: skip
EXECUTE = {
    # The one procedure without a token: it asks for a signature instead.
    "anon": {"public.ingest_webhook", "private.ingest_webhook"},
    "lastcall_functions": set(),
    "authenticator": set(),
    "authenticated": PEOPLE | {"private.current_agency_id", "public.current_agency"},
    "service_role": SERVICE,
    "lastcall_admin": SERVICE,
}


def world(db: TestDatabase) -> tuple[UUID, UUID, UUID]:
    """Two agencies with a batch, contacts, calls and events each: user, own batch, the other's batch."""
    batches = []
    for name in ("Mine", "Theirs"):
        agency = db.agency(name)
        user = db.user(agency, external_id=name)
        batch = db.batch(agency, user, external_id=name, status="pending")
        db.calling(agency)
        db.rows("insert into do_not_call (agency_id, phone_number) values (%s, '+15559999999')", agency)
        db.rows("select lift_hold((hold_calls(whole_agency => true, agency_id => %s)).hold_id)", agency)
        db.rows(
            "select add_contacts(%s, %s)",
            batch,
            '[{"phone_number": "+15550000001", "custom_data": {"a": 1}}, {"phone_number": "+15550000002"}]',
        )
        db.rows(
            "insert into webhook_queue (agency_id, event_id, event_type, payload) values (%s, 'e', 'call.ended', '{}')",
            agency,
        )
        db.rows(
            "select import_contacts(%s, (begin_import(%s, repeat('0', 64)) ->> 'import_id')::uuid, %s)",
            batch,
            batch,
            '[{"row": 2, "phone_number": "wrong"}]',
        )
        batches.append((user, batch))
    db.rows("select process_batches()")
    db.rows("select claim_contacts(1) union all select claim_contacts(1)")
    return batches[0][0], batches[0][1], batches[1][1]


@pytest.mark.parametrize("role", EXECUTE)
def test_each_role_may_execute_only_its_own_procedures(db: TestDatabase, role: str) -> None:
    executable = db.rows(
        "select n.nspname || '.' || p.proname as name from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
        " where n.nspname in ('public', 'private') and has_function_privilege(%s, p.oid, 'execute')",
        role,
    )
    assert {row["name"] for row in executable} == EXECUTE[role]


def test_every_procedure_pins_its_search_path_with_temporary_objects_last(db: TestDatabase) -> None:
    loose = db.rows(
        "select p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
        " where n.nspname in ('public', 'private')"
        " and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)"
    )
    assert loose == []


@pytest.mark.parametrize("name", ["text", "uuid", "timestamptz", "jsonb"])
def test_a_type_of_the_callers_own_never_runs_as_the_definer(db: TestDatabase, name: str) -> None:
    """A temporary domain named like a type of the procedures: its check would run with their rights."""
    user, batch, _ = world(db)
    with db.as_user(user) as connection:
        connection.execute(
            "create function pg_temp.evil(v anyelement) returns boolean language plpgsql as $$ begin"
            " if current_user <> 'authenticated' then raise exception 'runs as %', current_user; end if;"
            " return true; end $$"
        )
        connection.execute(f"create domain pg_temp.{name} as pg_catalog.{name} check (pg_temp.evil(value))")
        connection.execute("select public.stop_batch('Mine', 'Mine', idempotency_key => 'key-1', reason => 'why')")
        connection.execute("select public.list_user_batches('Mine'), public.list_batches()")
        connection.execute("select public.get_user_batch('Mine'), public.get_batch(%s)", [batch])
        connection.execute("select public.list_batch_events(%(b)s), public.export_contacts(%(b)s)", {"b": batch})
        connection.execute("select public.resume_batch(%s)", [batch])
        connection.execute("select public.pause_batch(%s)", [batch])
        row = connection.execute("select (public.cancel_batch(%s)).status", [batch]).fetchone()
    assert row == {"status": "cancelled"}


def test_the_public_doors_run_as_the_caller(db: TestDatabase) -> None:
    assert db.rows("select proname from pg_proc where pronamespace = 'public'::regnamespace and prosecdef") == []


@pytest.mark.parametrize("table", TABLES)
def test_a_user_reads_the_own_agency_and_no_other(db: TestDatabase, table: str) -> None:
    user, batch, _ = world(db)
    agency = db.value("select agency_id from call_batches where id = %s", batch)
    column = "id" if table == "agencies" else "agency_id"
    with db.as_user(user) as connection:
        seen = connection.execute(f"select distinct {column} as agency from {table}").fetchall()
    assert seen == [{"agency": agency}]
    assert db.value(f"select count(distinct {column}) from {table}") == 2


def test_the_summary_shows_the_own_agencys_batches_only(db: TestDatabase) -> None:
    user, batch, _ = world(db)
    with db.as_user(user) as connection:
        assert [row["id"] for row in connection.execute("select id from v_call_batch_summary")] == [batch]


def test_a_list_shows_the_own_agencys_batches_only(db: TestDatabase) -> None:
    user, batch, theirs = world(db)
    other = db.value("select agency_id from call_batches where id = %s", theirs)
    with db.as_user(user) as connection:
        shown = connection.execute("select list_batches() as list, list_batches(agency_id => %s) as other", [other])
        lists = shown.fetchone()
    assert lists is not None
    assert [shown["id"] for shown in lists["list"]["batches"]] == [str(batch)]
    assert (lists["other"]["batches"], lists["other"]["pagination"]["total"]) == ([], 0)


@pytest.mark.parametrize("table", [*TABLES, "v_call_batch_summary"])
def test_the_publishable_key_reads_nothing(db: TestDatabase, table: str) -> None:
    world(db)
    with db.acting("anon") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(f"select from {table}")


@pytest.mark.parametrize(
    ("role", "writable"),
    [
        ("anon", set()),
        ("authenticated", set()),
        ("lastcall_functions", set()),
        ("authenticator", set()),
        ("lastcall_admin", set()),
        # The backend brings agencies, people and batches; all else changes by procedures alone.
        ("service_role", {
            *((table, privilege) for table in BACKEND for privilege in ("insert", "update", "delete")),
            ("call_batches", "insert"),
        }),
    ],
)  # fmt: skip
def test_tables_are_written_by_procedures_alone(db: TestDatabase, role: str, writable: set[tuple[str, str]]) -> None:
    granted = {
        (table, privilege)
        for table in TABLES
        for privilege in ("insert", "update", "delete", "truncate", "trigger", "references")
        if db.value("select has_table_privilege(%s, %s, %s)", role, table, privilege)
        or (
            privilege in ("insert", "update", "references")
            and db.value("select has_any_column_privilege(%s, %s, %s)", role, table, privilege)
        )
    }
    assert granted == writable


@pytest.mark.parametrize("table", ["batch_events", "holds"])
@pytest.mark.parametrize("role", ["authenticated", "service_role"])
def test_only_an_admin_reads_idempotency_keys(db: TestDatabase, role: str, table: str) -> None:
    columns = db.rows(
        "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0"
        " and not has_column_privilege(%s, attrelid, attnum, 'select')",
        table,
        role,
    )
    assert {row["attname"] for row in columns} == {"idempotency_key", "request", "response"}
    assert db.value("select has_table_privilege('lastcall_admin', %s, 'select')", table)


@pytest.mark.parametrize(
    ("call", "values"),
    [
        ("select cancel_batch(%s)", ["batch"]),
        ("select stop_batch(%s::text, %s::text)", ["batch", "me"]),
        ("select stop_batch(%s::text, %s::text)", ["batch", "them"]),
        ("select stop_batch('Theirs', 'Theirs')", []),
        ("select stop_batch('Theirs', 'Mine')", []),
        ("select pause_batch(%s)", ["batch"]),
        ("select resume_batch(%s)", ["batch"]),
        ('select skip_contacts(%s, filter => \'{"status": ["pending"]}\')', ["batch"]),
        ('select skip_contacts(%s, filter => \'{"status": ["pending"]}\', dry_run => true)', ["batch"]),
        ("select opt_out('+15550000001', agency_id => %s)", ["agency"]),
        ("select hold_calls(whole_agency => true, agency_id => %s)", ["agency"]),
        ("select hold_calls(campaign_id => %s)", ["campaign"]),
        ("select hold_calls(campaign_id => %s, dry_run => true)", ["campaign"]),
        ("select hold_calls(agent_mapping_id => %s)", ["agent"]),
        ("select hold_calls(everything => true, agency_id => %s)", ["agency"]),
        ("select lift_hold(%s)", ["hold"]),
        ("select list_holds(%s)", ["agency"]),
        ("select list_user_batches(%s::text)", ["them"]),
        ("select get_batch(%s)", ["batch"]),
        ("select get_user_batch(%s::text)", ["batch"]),
        ("select get_user_batch('Theirs')", []),
        ("select list_batch_events(%s)", ["batch"]),
        ("select batch_silence(%s::text)", ["batch"]),
        ("select batch_silence('Theirs', 'Theirs')", []),
        ("select export_contacts(%s)", ["batch"]),
        ("select private.get_batch(%s, %s, null, 50, 0, null)", ["agency", "batch"]),
        ("select private.list_batch_events(%s, %s, 50, null)", ["agency", "batch"]),
        ("select private.export_contacts(%s, %s, null, 10, null)", ["agency", "batch"]),
        ("select rotate_webhook_secret(%s)", ["agency"]),
        ("select list_dead_webhooks(%s)", ["agency"]),
        ("select replay_webhooks(%s)", ["agency"]),
        ("select begin_import(%s, repeat('1', 64))", ["batch"]),
        ("select import_contacts(%s, %s, '[{\"row\": 3}]')", ["batch", "import"]),
        ("select finish_import(%s, %s)", ["batch", "import"]),
        ("select list_import_errors(%s)", ["import"]),
        (
            "select private.begin_import(%s, b, 3, repeat('1', 64), null)"
            "  from jsonb_populate_record(null::call_batches, jsonb_build_object('id', %s::text)) b",
            ["agency", "batch"],
        ),
        ("select private.import_contacts(%s, %s, %s, '[{\"row\": 3}]')", ["agency", "batch", "import"]),
        ("select private.finish_import(%s, %s, %s)", ["agency", "batch", "import"]),
        ("select private.cancel_batch(%s, %s, null, null, false)", ["agency", "batch"]),
        (
            'select private.skip_contacts(%s, %s, null, \'{"status": ["pending"]}\', false, null, null)',
            ["agency", "batch"],
        ),
        ("select private.opt_out(%s, '+15550000001', null, null)", ["agency"]),
        (
            "select private.hold_calls(h, 1, false, false)"
            "  from jsonb_populate_record(null::holds, jsonb_build_object('agency_id', %s::text)) h",
            ["agency"],
        ),
        ("select private.lift_hold(%s, null)", ["hold"]),
        ("select private.list_holds(%s, true, 10)", ["agency"]),
        ("select private.pause_batch(%s, %s, null, null)", ["agency", "batch"]),
        ("select private.resume_batch(%s, %s, null, null)", ["agency", "batch"]),
        ("select private.stop_batch(%s, %s, %s, '', false, null, null, false)", ["agency", "batch", "me"]),
        ("select private.stop_batch(%s, %s, %s, '', false, null, null, false)", ["agency", "batch", "them"]),
        ("select private.stop_batch(%s, %s, null, '', true, null, null, false)", ["agency", "batch"]),
    ],
)
def test_ids_guessed_right_reach_nothing_of_another_agency(db: TestDatabase, call: str, values: list[str]) -> None:
    user, _, theirs = world(db)
    row = db.row("select agency_id, user_id from call_batches where id = %s", theirs)
    imported = db.value("select id from batch_imports where batch_id = %s", theirs)
    ids: dict[str, Any] = {
        "batch": theirs, "agency": row["agency_id"], "me": user, "them": row["user_id"], "import": imported,
        "campaign": db.value("select id from campaigns where agency_id = %s", row["agency_id"]),
        "agent": db.value("select id from agent_mappings where agency_id = %s", row["agency_id"]),
        "hold": db.value("select id from holds where agency_id = %s", row["agency_id"]),
    }  # fmt: skip
    for role in ("agency_owner", "agency_admin", "agency_member", "client_admin", "client_viewer", "admin"):
        db.rows("update users set role = %s where id = %s", role, user)
        before = db.state()
        with db.as_user(user) as connection, pytest.raises(psycopg.Error) as refused:
            connection.execute(call, [ids[value] for value in values])
        # Whoever may do it in the own agency is told that it does not exist, the others that they may not.
        assert refused.value.sqlstate == "PT404" or (role not in ADMINS and refused.value.sqlstate == "PT403")
        assert db.state() == before


@pytest.mark.parametrize(
    "call",
    [
        "claim_contacts()", "process_batches()", "release_expired_leases()", "start_call(%(batch)s, '{1}', %(agency)s)",
        "finish_call(%(batch)s, '[]')", "confirm_call(%(batch)s, '[]')", "next_claim_in()", "list_open_calls()",
        "list_calls_to_end()",
        "private.start_call(%(agency)s, %(batch)s, '{1}', %(agency)s, 2)", "private.check_counters()",
        "private.recount_batch(%(batch)s)", "private.lock_batch(%(agency)s, %(batch)s)",
        "private.skip_remaining(%(agency)s, %(batch)s, '')", "process_webhook_queue()", "purge_webhook_queue()",
        "ingest_webhook(%(agency)s, '')", "private.find_webhook_call(%(agency)s, '{}')",
    ],
)  # fmt: skip
def test_a_user_cannot_play_the_dialer_even_with_the_own_batch(db: TestDatabase, call: str) -> None:
    user, batch, _ = world(db)
    agency = db.value("select agency_id from call_batches where id = %s", batch)
    before = db.state()
    with db.as_user(user) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(f"select {call}", {"batch": batch, "agency": agency})
    assert db.state() == before


@pytest.mark.own_database
def test_the_dialers_side_refuses_people_even_where_a_grant_slipped_through(db: TestDatabase) -> None:
    user, batch, _ = world(db)
    db.rows("grant execute on all functions in schema public, private to authenticated")
    before = db.state()
    for call in ("claim_contacts()", "process_batches()", "release_expired_leases()", "private.recount_batch(%(b)s)",
                 "start_call(%(b)s, '{1}', %(b)s)", "finish_call(%(b)s, '[]')", "confirm_call(%(b)s, '[]')",
                 "next_claim_in()", "list_open_calls()", "list_calls_to_end()",
                 "process_webhook_queue()", "purge_webhook_queue()"):  # fmt: skip
        with db.as_user(user) as connection, pytest.raises(psycopg.Error) as refused:
            connection.execute(f"select {call}", {"b": batch})
        assert refused.value.sqlstate == "PT403"
    assert db.state() == before


@pytest.mark.parametrize("claims", [None, {}, {"sub": "not-a-uuid"}, {"role": "service_role"}, {"sub": None}])
def test_a_handler_that_forgets_who_calls_is_refused(db: TestDatabase, claims: dict[str, Any] | None) -> None:
    _, batch, _ = world(db)
    before = db.state()
    for call in ("cancel_batch(%(batch)s)", "stop_batch(%(batch)s::text)"):
        with db.acting("authenticated", claims) as connection, pytest.raises(psycopg.Error) as refused:
            connection.execute(f"select {call}", {"batch": batch})
        assert refused.value.sqlstate == "PT401"
    assert db.state() == before


def test_a_handler_that_forgets_the_role_too_may_do_nothing(db: TestDatabase) -> None:
    user, batch, _ = world(db)
    with db.connect(log_in_as("lastcall_functions", db.uri)) as connection:
        connection.execute("select set_config('request.jwt.claims', %s, false)", [f'{{"sub": "{user}"}}'])
        for forbidden in ("select cancel_batch(%s)", "select from call_batches where id = %s"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden, [batch])


@pytest.mark.parametrize("role", ["lastcall_admin", "postgres", "authenticator", "pg_read_all_data", "pg_monitor"])
def test_the_functions_role_becomes_nobody_but_the_three(db: TestDatabase, role: str) -> None:
    with db.connect(log_in_as("lastcall_functions", db.uri)) as connection:
        for allowed in ("anon", "authenticated", "service_role"):
            connection.execute(f"set role {allowed}")
            # Nor by way of one of them: who may be become is the session's matter.
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"set role {role}")
        connection.execute("reset role")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(f"set session authorization {role}")


def test_the_functions_role_by_itself_reads_makes_and_changes_nothing(db: TestDatabase) -> None:
    world(db)
    readable = db.rows(
        "select c.relname from pg_class c where c.relkind in ('r', 'v', 'm', 'S', 'p')"
        " and c.relnamespace in ('public'::regnamespace, 'private'::regnamespace, 'supabase_migrations'::regnamespace)"
        " and (has_table_privilege('lastcall_functions', c.oid, 'select')"
        "   or has_any_column_privilege('lastcall_functions', c.oid, 'select'))"
    )
    assert readable == []
    with db.connect(log_in_as("lastcall_functions", db.uri)) as connection:
        for forbidden in (
            "select from private.check_counters()",
            "create table public.mine ()",
            "create schema mine",
            "create role mine",
            "grant service_role to anon",
            "grant lastcall_admin to lastcall_functions",
            "alter role lastcall_functions bypassrls",
            "alter role authenticator password 'mine'",
            "select from pg_authid",
            "copy (select 1) to '/tmp/mine'",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden)


def test_an_admin_of_the_console_is_one_by_membership_alone(db: TestDatabase) -> None:
    _, batch, _ = world(db)
    name = f"alice_{db.value('select current_database()')}"
    db.rows(f"create role {name} login")
    try:
        with db.connect(log_in_as(name, db.uri)) as alice:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                alice.execute("select cancel_batch(%s)", [batch])
            db.rows(f"grant lastcall_admin to {name}")
            assert alice.execute("select count(*) as n from call_batches").fetchone() == {"n": 2}
            row = alice.execute("select * from cancel_batch(%s)", [batch]).fetchone()
        assert row is not None
        assert row["status"] == "cancelled"
        event = db.row("select actor_kind, actor_role from batch_events where action = 'cancel'")
        assert event == {"actor_kind": "console", "actor_role": name}
    finally:
        db.rows(f"drop role {name}")


def test_the_user_row_decides_and_not_the_tokens_metadata(db: TestDatabase) -> None:
    user, batch, theirs = world(db)
    db.rows("update users set role = 'agency_member' where id = %s", user)
    boast = {
        "sub": str(user),
        "app_metadata": {"role": "agency_owner"},
        "user_metadata": {"role": "agency_owner", "agency_id": str(theirs)},
        "user_role": "agency_owner",
    }
    with db.acting("authenticated", boast) as connection, pytest.raises(psycopg.Error) as refused:
        connection.execute("select cancel_batch(%s)", [batch])
    assert refused.value.sqlstate == "PT403"


def test_every_table_has_row_level_security_and_every_key_begins_with_the_agency(db: TestDatabase) -> None:
    assert (
        db.rows(
            "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"
            " and not relrowsecurity"
        )
        == []
    )
    indexes = db.rows(
        "select c.relname as index, a.attname as first from pg_index i join pg_class c on c.oid = i.indexrelid"
        " join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]"
        " where c.relnamespace = 'public'::regnamespace and i.indrelid not in"
        " ('agencies'::regclass, 'users'::regclass)"
    )
    # An admin gives a batch's id alone; with the agency first, plans would take the next three for a batch's
    # rows; what is due, or ended last, is so whichever agency's. These indexes are not unique, so they can be
    # distributed too. A hold of every agency has no agency.
    assert {row["index"] for row in indexes if row["first"] != "agency_id"} == {
        "call_batches_id", "calls_contact", "calls_carrier", "campaign_contacts_number", "webhook_queue_due",
        "call_batches_ended", "holds_pkey",
    }  # fmt: skip


def test_no_index_mentions_a_column_that_changes_as_a_contact_moves(db: TestDatabase) -> None:
    definitions = db.rows("select indexdef from pg_indexes where tablename = 'campaign_contacts'")
    moving = (
        "status",
        "attempts",
        "call_id",
        "last_attempt_at",
        "completed_at",
        "outcome",
        "duration_seconds",
    )
    assert [row for row in definitions if any(column in row["indexdef"] for column in moving)] == []
