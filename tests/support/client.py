"""A client of the functions in this process, and the requests of an agency's owner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx2
from starlette.testclient import TestClient

from functions._shared.auth import Caller
from functions._shared.settings import Settings
from functions.app import create_app

from .database import TestDatabase
from .tokens import bearer

CANCEL = "/functions/v1/calls-batch-cancel"


@contextmanager
def serve(settings: Settings, **changes: Any) -> Iterator[TestClient]:
    """A service that waits for its database as long as a slow machine may need."""
    changes = {"pool_timeout_s": 60.0, **changes}
    with TestClient(create_app(replace(settings, **changes)), raise_server_exceptions=False) as client:
        yield client


def answer(response: Any) -> tuple[int, Any]:
    """The status and the JSON body of a response."""
    return response.status_code, response.json()


class Case:
    """An agency with an owner and a batch of pending contacts."""

    def __init__(self, db: TestDatabase, contacts: int = 3) -> None:
        agency = db.agency()
        self.user = db.user(agency)
        self.batch = db.batch(agency, self.user)
        if contacts:
            db.contacts(self.batch, pending=contacts)

    def cancel(self, client: TestClient, key: str | None = None) -> httpx2.Response:
        headers = bearer(self.user) | ({"Idempotency-Key": key} if key else {})
        return client.post(CANCEL, json={"batch_id": str(self.batch)}, headers=headers)

    def list(self, client: TestClient) -> httpx2.Response:
        return client.get("/functions/v1/calls-batch-list", headers=bearer(self.user))

    @property
    def caller(self) -> Caller:
        return Caller("authenticated", {"sub": str(self.user), "role": "authenticated"}, request_id="r-1")

    @property
    def arguments(self) -> dict[str, Any]:
        return {"batch_id": self.batch}
