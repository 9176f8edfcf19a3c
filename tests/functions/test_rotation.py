"""Each secret is replaced while requests go on: what holds the old one and what holds the new one both pass, until
the old one is taken away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from starlette.testclient import TestClient

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.database import TestDatabase, log_in_as
from ..support.keys import key_server, new_key
from ..support.tokens import bearer, claims, handmade, token

OLD, NEW, NEWER = (f"the-{name}-secret-of-at-least-32-bytes" for name in ("old", "new", "newer"))
USER = "5f0e7a3c-1b2d-4c3e-8f90-a1b2c3d4e5f6"
CANCEL, QUEUE = "/functions/v1/calls-batch-cancel", "/functions/v1/process-webhook-queue"


@contextmanager
def serving(settings: Settings, **changes: Any) -> Iterator[TestClient]:
    with TestClient(create_app(replace(settings, **changes))) as client:
        yield client


def is_user(client: TestClient, encoded: str) -> bool:
    """A valid token and a body without anything in it: 400."""
    response = client.post(CANCEL, json={}, headers={"Authorization": f"Bearer {encoded}"})
    assert response.status_code in (400, 401)
    return response.status_code == 400


def is_service(client: TestClient, secret: str) -> bool:
    response = client.post(QUEUE, headers={"Authorization": f"Bearer {secret}"})
    assert response.status_code in (200, 401)
    return response.status_code == 200


def test_the_secret_that_signs_tokens_is_replaced_and_no_user_is_refused(settings: Settings) -> None:
    old, new = token(USER, OLD), token(USER, NEW)
    with serving(settings, jwt_secret=OLD) as client:
        assert [is_user(client, old), is_user(client, new)] == [True, False]
    with serving(settings, jwt_secret=NEW, jwt_secret_previous=OLD) as client:
        assert [is_user(client, old), is_user(client, new)] == [True, True]
        assert not is_user(client, token(USER, NEWER))
        assert not is_user(client, token(USER, OLD, exp=1_000_000_000))
    with serving(settings, jwt_secret=NEW) as client:
        assert [is_user(client, old), is_user(client, new)] == [False, True]


def test_a_secret_is_replaced_by_published_keys_and_no_user_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key("a")
    with key_server(monkeypatch) as keys:
        keys.publish(key)
        published = {"jwt_secret": None, "supabase_url": keys.url}
        with serving(settings, **published, jwt_secret_previous=OLD) as client:
            assert [is_user(client, token(USER, OLD)), is_user(client, key.token(USER))] == [True, True]
            assert not is_user(client, handmade({"alg": "HS256", "kid": "a"}, claims(USER), key.pem))
            assert not is_user(client, token(USER, NEW))
        with serving(settings, **published) as client:
            assert [is_user(client, token(USER, OLD)), is_user(client, key.token(USER))] == [False, True]


@pytest.mark.parametrize("name", ["cron_secret", "secret_key"])
def test_a_secret_of_the_service_is_replaced_and_no_run_is_refused(settings: Settings, name: str) -> None:
    with serving(settings, **{name: OLD}) as client:
        assert [is_service(client, OLD), is_service(client, NEW)] == [True, False]
    with serving(settings, **{name: NEW, f"{name}_previous": OLD}) as client:
        assert [is_service(client, OLD), is_service(client, NEW), is_service(client, NEWER)] == [True, True, False]
    with serving(settings, **{name: NEW}) as client:
        assert [is_service(client, OLD), is_service(client, NEW)] == [False, True]


def test_the_login_role_is_replaced_by_a_second_one_with_the_same_rights(db: TestDatabase, settings: Settings) -> None:
    role = f"second_login_of_{db.value('select current_database()')}"
    db.rows(f"create role {role} login noinherit in role lastcall_functions")
    try:
        agency = db.agency()
        batch, owner = db.batch(agency), bearer(db.user(agency))
        uri = log_in_as(role, db.uri)
        with serving(settings, database_url=uri) as client:
            response = client.post(CANCEL, json={"batch_id": str(batch)}, headers=owner)
        assert response.status_code == 200
        with db.connect(uri) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select from call_batches")
    finally:
        db.rows(f"drop role {role}")
