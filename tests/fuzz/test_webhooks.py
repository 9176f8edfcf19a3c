"""Requests of carriers: signatures, secrets and bodies."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from starlette.testclient import TestClient

from ..support.database import TestDatabase
from ..support.webhooks import Carrier, event, process, signed_standard, signed_ultravox
from . import strategies
from .rule import PHONE_NUMBER, PLANTED, fuzz, heard, holds

INGEST = "/functions/v1/webhook-ingest"
UUID = "0d1c2b3a-4f5e-4a6b-8c7d-9e8f7a6b5c4d"
EVENT = event("call.ended", {"batch_id": UUID, "call_id": 1, "lease": UUID}, shortSummary=PHONE_NUMBER)
NAMES = (
    "webhook-id", "webhook-timestamp", "webhook-signature", "x-ultravox-webhook-timestamp",
    "x-ultravox-webhook-signature",
)  # fmt: skip
signature = strategies.header_value | st.sampled_from(
    [
        b"v1,",
        b"v1,AAAA",
        b"v1,=",
        b"v1,AAAA v1a,AAAA v2,\xff",
        b"v1 " * 3_000,
        b"00" * 32,
        b"0,0,",
        b"1e999",
        b"-1",
        b"9" * 40,
    ]
)


@pytest.fixture
def carrier(db: TestDatabase) -> Carrier:
    return Carrier(db, db.agency())


def test_a_signature(either_client: TestClient, carrier: Carrier) -> None:
    @fuzz(80)
    @given(st.dictionaries(st.sampled_from(NAMES), signature), strategies.path_segment)
    def run(headers: Any, secret: str) -> None:
        with heard() as log:
            for path in (f"{INGEST}/{carrier.agency}", f"{INGEST}/{carrier.agency}/{secret}", f"{INGEST}/{secret}"):
                sent = {name.encode(): value for name, value in headers.items()}
                response = either_client.post(f"http://testserver{path}", json=EVENT, headers=sent)
                holds(response, log)
                assert response.status_code in (400, 401, 404)

    run()


def test_a_body_that_is_signed(either_client: TestClient, carrier: Carrier, db: TestDatabase) -> None:
    @fuzz(80)
    @given(
        strategies.encoded(strategies.spoiled(EVENT) | strategies.json_text),
        st.sampled_from(["standard", "ultravox", "path"]),
    )
    def run(body: bytes, way: str) -> None:
        text = body.decode(errors="replace")
        signed = {"standard": signed_standard, "ultravox": signed_ultravox}
        headers = signed[way](carrier.secret, text) if way in signed else {}
        path = f"{INGEST}/{carrier.agency}" + (f"/{carrier.secret}" if way == "path" else "")
        with heard() as log:
            holds(either_client.post(path, content=body, headers=headers), log)
            assert carrier.secret not in log.text

    run()
    # Whatever was stored can be applied, or be said to be dead: it holds up nothing behind it.
    while process(db)["processed"]:
        pass
    assert PLANTED not in str(db.rows("select error_message from webhook_queue"))
