"""sql/supabase/custom_access_token_hook.sql: claims for clients to read, which the core does not believe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from starlette.testclient import TestClient

from functions.migrations import SQL

from ..support.database import TestDatabase
from ..support.tokens import bearer, claims

pytestmark = pytest.mark.own_database

HOOK = (SQL / "supabase" / "custom_access_token_hook.sql").read_text()


@pytest.fixture
def hooked(db: TestDatabase) -> Iterator[TestDatabase]:
    """A database with the hook, and Supabase Auth's role, which is the cluster's."""
    db.rows("create role supabase_auth_admin noinherit")
    try:
        db.owner.execute(HOOK)
        yield db
    finally:
        db.rows("drop owned by supabase_auth_admin")
        db.rows("drop role supabase_auth_admin")


def issued(db: TestDatabase, user: UUID, **given: Any) -> dict[str, Any]:
    """The claims that Supabase Auth puts into a token, as it asks the hook for them."""
    event = {"user_id": str(user), "claims": claims(user, **given), "authentication_method": "password"}
    with db.owner.transaction(force_rollback=True):
        db.rows("set local role supabase_auth_admin")
        answer = db.value("select private.custom_access_token_hook(%s)", json.dumps(event))
    assert answer.keys() == event.keys()
    result: dict[str, Any] = answer["claims"]
    return result


def test_a_token_tells_its_users_agency_and_role(hooked: TestDatabase) -> None:
    agency = hooked.agency()
    user = hooked.user(agency, "agency_admin")
    told = issued(hooked, user, aal="aal1")
    assert (told.pop("agency_id"), told.pop("user_role")) == (str(agency), "agency_admin")
    # The database's role among them.
    assert told == {**claims(user, aal="aal1"), "exp": told["exp"]}


@pytest.mark.parametrize("known", [True, False], ids=["no-agency", "no-row"])
def test_a_user_of_no_agency_signs_in_all_the_same(hooked: TestDatabase, known: bool) -> None:
    user = hooked.user(None) if known else uuid4()
    assert issued(hooked, user).keys() == claims(user).keys()


def test_a_token_from_before_its_user_lost_the_role_cancels_nothing(hooked: TestDatabase, client: TestClient) -> None:
    agency = hooked.agency()
    user, batch = hooked.user(agency), hooked.batch(agency)
    told = issued(hooked, user)
    assert told["user_role"] == "agency_owner"
    hooked.rows("update users set role = 'agency_member' where id = %s", user)
    body = {"batch_id": str(batch)}
    assert client.post("/calls-batch-cancel", json=body, headers=bearer(user, **told)).status_code == 403
    other = hooked.agency("Other")
    hooked.rows("update users set role = 'agency_owner', agency_id = %s where id = %s", other, user)
    assert client.post("/calls-batch-cancel", json=body, headers=bearer(user, **told)).status_code == 404
    assert hooked.batch_row(batch)["status"] == "processing"


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_no_other_role_calls_it(hooked: TestDatabase, role: str) -> None:
    with hooked.acting(role) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("select private.custom_access_token_hook('{}')")


def test_supabase_auth_may_do_nothing_else(hooked: TestDatabase) -> None:
    assert hooked.rows(
        "select p.oid::regprocedure::text as function from pg_proc p"
        " where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace)"
        "   and has_function_privilege('supabase_auth_admin', p.oid, 'execute')"
    ) == [{"function": "private.custom_access_token_hook(jsonb)"}]
    assert not hooked.value("select has_any_column_privilege('supabase_auth_admin', 'users', 'select')")


def test_it_can_be_run_again(hooked: TestDatabase) -> None:
    hooked.owner.execute(HOOK)


def test_where_supabase_auth_makes_no_tokens_it_says_so(db: TestDatabase) -> None:
    with pytest.raises(psycopg.Error, match="supabase_auth_admin is missing"):
        db.owner.execute(HOOK)
    assert db.value("select to_regprocedure('private.custom_access_token_hook(jsonb)')") is None
