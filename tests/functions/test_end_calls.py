"""end_calls of calls-batch-cancel and endCalls of stop-calling: the carrier hangs up the calls in progress."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from starlette.testclient import TestClient

from ..support.database import TestDatabase
from ..support.tokens import bearer

PATHS = {"cancelled": "/functions/v1/calls-batch-cancel", "stopped": "/api/call/stop-calling"}


class Case:
    """A batch with 2 calls in progress, and the request that ends it."""

    def __init__(self, db: TestDatabase, client: TestClient, status: str) -> None:
        self._db = db
        self._client = client
        self.status = status
        self.batch, _ = db.in_progress(2)
        self.agency: UUID = db.batch_row(self.batch)["agency_id"]
        self.owner = db.user(self.agency)
        db.rows("update call_batches set user_id = %s", self.owner)

    def end(self, user: UUID | None = None, **given: Any) -> Any:
        if self.status == "stopped":
            body: dict[str, Any] = {"batchId": str(self.batch), "userId": str(self.owner)}
            body |= {"endCalls": given["end_calls"]} if given else {}
        else:
            body = {"batch_id": str(self.batch), **given}
        return self._client.post(PATHS[self.status], json=body, headers=bearer(user or self.owner))

    def asked_to_end(self) -> int:
        """How many calls somebody asked to end."""
        number: int = self._db.value("select count(*) from calls where hang_up")
        return number


@pytest.mark.parametrize("status", PATHS)
def test_the_calls_in_progress_end_when_asked_for(db: TestDatabase, either_client: TestClient, status: str) -> None:
    case = Case(db, either_client, status)
    assert case.end(end_calls=True).status_code == 200
    assert (db.batch_row(case.batch)["status"], case.asked_to_end()) == (status, 2)


@pytest.mark.parametrize("status", PATHS)
@pytest.mark.parametrize("given", [{}, {"end_calls": False}], ids=["not given", "false"])
def test_otherwise_they_finish(
    db: TestDatabase, either_client: TestClient, status: str, given: dict[str, bool]
) -> None:
    case = Case(db, either_client, status)
    assert case.end(**given).status_code == 200
    assert (db.batch_row(case.batch)["status"], case.asked_to_end()) == (status, 0)


def test_the_message_of_cancel_says_which(db: TestDatabase, either_client: TestClient) -> None:
    assert Case(db, either_client, "cancelled").end(end_calls=True).json()["message"] == (
        "Batch cancelled. In-progress calls are being ended and no new calls will be initiated."
    )


def test_the_calls_of_a_cancelled_batch_can_be_ended_afterwards(db: TestDatabase, either_client: TestClient) -> None:
    case = Case(db, either_client, "cancelled")
    assert case.end().status_code == 200
    assert case.end().status_code == 400
    assert case.end(end_calls=True).status_code == 200
    assert case.asked_to_end() == 2


@pytest.mark.parametrize("status", PATHS)
@pytest.mark.parametrize("value", ["true", 1, [], {}])
def test_a_value_that_is_no_boolean_is_refused_and_nothing_ends(
    db: TestDatabase, client: TestClient, status: str, value: Any
) -> None:
    case = Case(db, client, status)
    assert case.end(end_calls=value).status_code == 400
    assert (db.batch_row(case.batch)["status"], case.asked_to_end()) == ("processing", 0)


@pytest.mark.parametrize("status", PATHS)
def test_a_member_ends_no_calls(db: TestDatabase, either_client: TestClient, status: str) -> None:
    case = Case(db, either_client, status)
    assert case.end(db.user(case.agency, "agency_member"), end_calls=True).status_code == 403
    assert (db.batch_row(case.batch)["status"], case.asked_to_end()) == ("processing", 0)
