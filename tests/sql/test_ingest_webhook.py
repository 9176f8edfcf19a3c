"""A signed event is stored once; a request without the signature changes and learns nothing."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from ..support.database import TestDatabase
from ..support.webhooks import Carrier, event, queue, signed_standard, signed_ultravox

BODY = json.dumps(event("call.ended"))
SIGNERS = {"standard": signed_standard, "ultravox": signed_ultravox}


def ingest(
    db: TestDatabase,
    agency: UUID,
    body: str | None = BODY,
    headers: dict[str, str] | None = None,
    secret: str | None = None,
) -> Any:
    """As the publishable key: the event's id, or the sqlstate of the refusal."""
    with db.acting("anon") as anon:
        try:
            row = anon.execute(
                "select * from ingest_webhook(%s, %s, %s, %s)", [agency, body, json.dumps(headers or {}), secret]
            ).fetchone()
        except psycopg.Error as error:
            return error.sqlstate, error.diag.message_primary
    assert row is not None
    assert row["success"] is True
    return row["event_id"]


REFUSED = ("PT401", "Invalid webhook signature or secret")


# hmac_sha256


@pytest.mark.parametrize(
    ("key", "message", "digest"),
    [
        ("0b" * 20, "4869205468657265", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
        (b"Jefe".hex(), b"what do ya want for nothing?".hex(),
         "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
        ("aa" * 20, "dd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
        (bytes(range(1, 26)).hex(), "cd" * 50, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
        ("aa" * 131, b"Test Using Larger Than Block-Size Key - Hash Key First".hex(),
         "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"),
        ("aa" * 131, b"This is a test using a larger than block-size key and a larger than block-size data. The key"
                     b" needs to be hashed before being used by the HMAC algorithm.".hex(),
         "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"),
    ],
    ids=[1, 2, 3, 4, 6, 7],
)  # fmt: skip
def test_hmac_sha256_gives_the_digests_of_rfc_4231(db: TestDatabase, key: str, message: str, digest: str) -> None:
    query = "select encode(private.hmac_sha256(decode(%s, 'hex'), decode(%s, 'hex')), 'hex')"
    assert db.value(query, key, message) == digest


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 1000])
def test_hmac_sha256_with_keys_of_any_length(db: TestDatabase, length: int) -> None:
    key = bytes(i % 256 for i in range(length))
    assert db.value("select private.hmac_sha256(%s, 'message')", key) == hmac.digest(key, b"message", hashlib.sha256)


# Signatures


@pytest.mark.parametrize("signer", SIGNERS)
@pytest.mark.parametrize("age", [0, 240, -290])  # what is old grows older on its way
def test_a_signature_is_good_for_five_minutes_both_ways(db: TestDatabase, signer: str, age: float) -> None:
    carrier = Carrier(db, db.agency())
    assert ingest(db, carrier.agency, headers=SIGNERS[signer](carrier.secret, BODY, age=age)) in (
        "msg_1",
        "carrier-0 call.ended",
    )
    assert queue(db) == [("pending", None)]


def test_the_secret_in_the_path_is_enough_without_a_signature(db: TestDatabase) -> None:
    carrier = Carrier(db, db.agency())
    assert ingest(db, carrier.agency, secret=carrier.secret) == "carrier-0 call.ended"


@pytest.mark.parametrize(("header", "between"), [("webhook-signature", " "), ("x-ultravox-webhook-signature", ",")])
def test_one_of_several_signatures_is_enough(db: TestDatabase, header: str, between: str) -> None:
    carrier = Carrier(db, db.agency())
    headers = (signed_standard if header == "webhook-signature" else signed_ultravox)(carrier.secret, BODY)
    headers[header] = between.join(["v2,AAAA", "v1,AAAA", headers[header], "00"])
    assert isinstance(ingest(db, carrier.agency, headers=headers), str)


def spoiled(name: str, headers: dict[str, str], how: str) -> dict[str, str]:
    timestamp = "webhook-timestamp" if name == "standard" else "x-ultravox-webhook-timestamp"
    signature = "webhook-signature" if name == "standard" else "x-ultravox-webhook-signature"
    changes: dict[str, dict[str, str]] = {
        "another signature": {signature: "v1," + "A" * 43 + "=" if name == "standard" else "0" * 64},
        "no signature in it": {signature: ""},
        "another timestamp": {
            timestamp: headers[timestamp].replace("+00:00", "Z")
            if name == "ultravox"
            else str(int(headers[timestamp]) + 1)
        },
        "a timestamp that is none": {timestamp: "yesterday"},
        "a timestamp beyond all bounds": {timestamp: "9" * 40},
        "cut short": {signature: headers[signature][:-1]},
    }
    if how == "no timestamp":
        return {key: value for key, value in headers.items() if key != timestamp}
    if how == "no id":
        return {key: value for key, value in headers.items() if key != "webhook-id"}
    return headers | changes[how]


@pytest.mark.parametrize(
    ("signer", "how"),
    [
        (signer, how)
        for signer in SIGNERS
        for how in ("another signature", "no signature in it", "another timestamp", "a timestamp that is none",
                    "a timestamp beyond all bounds", "cut short", "no timestamp", "no id")
        if (signer, how) != ("ultravox", "no id")
    ],
)  # fmt: skip
def test_a_wrong_signature_is_refused_even_with_the_right_secret_in_the_path(
    db: TestDatabase, signer: str, how: str
) -> None:
    carrier = Carrier(db, db.agency())
    before = db.state()
    headers = spoiled(signer, SIGNERS[signer](carrier.secret, BODY), how)
    assert ingest(db, carrier.agency, headers=headers, secret=carrier.secret) == REFUSED
    assert db.state() == before


@pytest.mark.parametrize("signer", SIGNERS)
@pytest.mark.parametrize("age", [310, -360])  # what is of the future comes nearer on its way
def test_an_old_or_future_signature_is_refused(db: TestDatabase, signer: str, age: float) -> None:
    carrier = Carrier(db, db.agency())
    assert ingest(db, carrier.agency, headers=SIGNERS[signer](carrier.secret, BODY, age=age)) == REFUSED


@pytest.mark.parametrize("signer", SIGNERS)
def test_a_signature_is_of_this_body_and_this_agency(db: TestDatabase, signer: str) -> None:
    mine, theirs = Carrier(db, db.agency()), Carrier(db, db.agency("Other"))
    headers = SIGNERS[signer](mine.secret, BODY)
    assert ingest(db, mine.agency, BODY + " ", headers) == REFUSED
    assert ingest(db, theirs.agency, BODY, headers) == REFUSED
    assert queue(db) == []


def test_a_right_signature_of_the_second_kind_does_not_heal_a_wrong_one_of_the_first(db: TestDatabase) -> None:
    carrier = Carrier(db, db.agency())
    headers = {**signed_standard(carrier.secret, BODY + " "), **signed_ultravox(carrier.secret, BODY)}
    assert ingest(db, carrier.agency, headers=headers, secret=carrier.secret) == REFUSED


def test_a_request_without_a_secret_learns_nothing_and_changes_nothing(db: TestDatabase) -> None:
    """The same answer, whether the agency is unknown, has no secret, or has another one; and whatever is sent."""
    carrier, without = Carrier(db, db.agency()), db.agency("Without")
    before = db.state()
    for agency in (carrier.agency, without, uuid4()):
        for body in (BODY, "", "{", '{"event": "call.ended"}'):
            for secret in (None, "", "whsec_", carrier.secret[:-1], carrier.secret + "=", carrier.secret.lower()):
                assert ingest(db, agency, body, secret=secret) == REFUSED
            assert ingest(db, agency, body, signed_standard("whsec_AAAA", body)) == REFUSED
    assert ingest(db, carrier.agency, None, signed_standard(carrier.secret, ""), carrier.secret) == REFUSED
    assert db.state() == before


def test_the_time_of_a_refusal_does_not_tell_whether_there_is_such_an_agency(db: TestDatabase) -> None:
    """As many digests are made for an agency that is unknown as for one whose secret is not known."""
    carrier = Carrier(db, db.agency())
    headers = signed_standard("whsec_AAAA", BODY)
    db.rows("set track_functions = 'all'")
    made = []
    for agency in (carrier.agency, uuid4()):
        db.rows("select pg_stat_force_next_flush()")
        before = db.rows("select calls from pg_stat_user_functions where funcname = 'hmac_sha256'")
        assert db.value("select private.verify_webhook(%s, %s, %s, null)", agency, BODY, json.dumps(headers)) is False
        db.rows("select pg_stat_force_next_flush()")
        db.rows("select 1")
        after = db.value("select calls from pg_stat_user_functions where funcname = 'hmac_sha256'")
        made.append(after - (before[0]["calls"] if before else 0))
    assert made == [1, 1]


# Storage


def test_a_delivery_that_is_repeated_is_stored_once_and_answered_alike(db: TestDatabase) -> None:
    carrier = Carrier(db, db.agency())
    told = [ingest(db, carrier.agency, secret=carrier.secret) for _ in range(3)]
    assert told == ["carrier-0 call.ended"] * 3
    for age in (0, 10):
        assert ingest(db, carrier.agency, headers=signed_standard(carrier.secret, BODY, age=age)) == "msg_1"
    assert len(queue(db)) == 2


def test_a_header_that_the_signature_does_not_cover_makes_no_new_event(db: TestDatabase) -> None:
    carrier = Carrier(db, db.agency())
    signed = signed_ultravox(carrier.secret, BODY)
    for replay in ({}, {"webhook-id": "msg_1"}, {"webhook-id": "msg_2", "webhook-timestamp": "1"}):
        assert ingest(db, carrier.agency, headers=signed | replay) == "carrier-0 call.ended"
    assert queue(db) == [("pending", None)]


def test_a_replay_cannot_take_the_place_of_an_event_to_come(db: TestDatabase) -> None:
    carrier = Carrier(db, db.agency())
    started, ended = json.dumps(event("call.started")), json.dumps(event("call.ended"))
    headers = signed_ultravox(carrier.secret, started) | {"webhook-id": "carrier-0 call.ended"}
    assert ingest(db, carrier.agency, started, headers) == "carrier-0 call.started"
    assert ingest(db, carrier.agency, ended, signed_ultravox(carrier.secret, ended)) == "carrier-0 call.ended"
    assert db.value("select array_agg(event_type order by id) from webhook_queue") == ["call.started", "call.ended"]


def test_agencies_may_use_the_same_event_ids(db: TestDatabase) -> None:
    for carrier in (Carrier(db, db.agency()), Carrier(db, db.agency("Other"))):
        assert ingest(db, carrier.agency, headers=signed_standard(carrier.secret, BODY)) == "msg_1"
    assert len(queue(db)) == 2


@pytest.mark.parametrize(
    "body",
    [
        "", "{", "[]", "null", '"call.ended"', "{}", '{"event": null}', '{"event": 7}', '{"event": ""}',
        json.dumps({"event": "x" * 51}), '{"event": "call.ended"}', '{"event": "call.ended", "call": []}',
        '{"event": "call.ended", "call": {"created": "2025-01-15T10:30:00Z"}}',
        '{"event": "call.ended", "call": {"callId": "", "created": "2025-01-15T10:30:00Z"}}',
        '{"event": "call.ended", "call": {"callId": 7, "created": "2025-01-15T10:30:00Z"}}',
        '{"event": "call.ended", "call": {"callId": "c"}}',
        json.dumps({"event": "call.ended", "call": {"callId": "x" * 256, "created": "2025-01-15T10:30:00Z"}}),
        '{"event": "call.ended", "call": {"callId": "\\u0000", "created": "2025-01-15T10:30:00Z"}}',
        "[" * 200_000,
    ],
)  # fmt: skip
def test_a_body_that_is_no_event_is_refused_with_pt400(db: TestDatabase, body: str) -> None:
    carrier = Carrier(db, db.agency())
    before = db.state()
    refused = ingest(db, carrier.agency, body, secret=carrier.secret)
    assert refused == ("PT400", "Body must be a webhook event: event, and call with callId and created")
    assert db.state() == before


def test_a_huge_body_is_refused_before_anything_is_made_of_it(db: TestDatabase) -> None:
    carrier = Carrier(db, db.agency())
    assert ingest(db, carrier.agency, " " * 262_145)[0] == "PT413"
    assert ingest(db, carrier.agency, BODY + " " * (262_144 - len(BODY)), secret=carrier.secret)


def test_an_event_of_an_unknown_type_is_accepted_and_ignored(db: TestDatabase) -> None:
    carrier = Carrier(db, db.agency())
    bodies = [json.dumps(event("call.billed")), '{"event": "ping"}']
    told = [ingest(db, carrier.agency, body, secret=carrier.secret) for body in bodies]
    assert told == ["carrier-0 call.billed", hashlib.sha256(b'{"event": "ping"}').hexdigest()]
    assert queue(db) == [("ignored", "Not an event to apply")] * 2


# Secrets


def test_a_new_secret_is_shown_once_and_the_former_one_stays_valid_for_the_grace(db: TestDatabase) -> None:
    first = Carrier(db, db.agency())
    second = Carrier(db, first.agency)
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", first.secret)
    assert first.secret != second.secret
    for carrier in (first, second):
        assert isinstance(ingest(db, carrier.agency, headers=signed_standard(carrier.secret, BODY)), str)
    third = db.value("select webhook_secret from rotate_webhook_secret(%s, grace => '0')", first.agency)
    for carrier in (first, second):
        assert ingest(db, carrier.agency, headers=signed_standard(carrier.secret, BODY)) == REFUSED
    assert ingest(db, first.agency, secret=third) == "carrier-0 call.ended"
    db.rows("select rotate_webhook_secret(%s)", first.agency)
    assert db.value("select count(*) from private.webhook_secrets") == 2  # those that expired are gone


def test_a_later_rotation_does_not_make_a_secret_last_longer(db: TestDatabase) -> None:
    carrier = Carrier(db, db.agency())
    db.rows("select rotate_webhook_secret(%s, '1 hour')", carrier.agency)
    db.rows("select rotate_webhook_secret(%s, '2 days')", carrier.agency)
    last = (
        "select max(expires_at - clock_timestamp()) < interval '1 hour' from private.webhook_secrets where secret = %s"
    )
    assert db.value(last, carrier.secret)


def test_owners_and_admins_rotate_the_secret_of_their_own_agency(db: TestDatabase) -> None:
    agency, other = db.agency(), db.agency("Other")
    for role in ("agency_owner", "agency_admin"):
        with db.as_user(db.user(agency, role)) as connection:
            row = connection.execute("select * from rotate_webhook_secret()").fetchone()
            assert row is not None
            assert row["agency_id"] == agency
            with pytest.raises(psycopg.Error) as refused:
                connection.execute("select rotate_webhook_secret(%s)", [other])
            assert refused.value.sqlstate == "PT404"
    for user in (db.user(agency, "agency_member"), db.user(None)):
        with db.as_user(user) as connection, pytest.raises(psycopg.Error) as refused:
            connection.execute("select rotate_webhook_secret()")
        assert refused.value.sqlstate == "PT403"
    with db.as_service() as service:
        for arguments, sqlstate in (("", "PT400"), ("gen_random_uuid()", "PT404"), (f"'{agency}', '-1 s'", "PT400"),
                                    (f"'{agency}', '31 days'", "PT400"), (f"'{agency}', null", "PT400")):  # fmt: skip
            with pytest.raises(psycopg.Error) as refused:
                service.execute(f"select rotate_webhook_secret({arguments})".encode())
            assert refused.value.sqlstate == sqlstate
        assert service.execute("select rotate_webhook_secret(%s)", [other]).fetchone()


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role", "lastcall_admin"])
def test_no_role_reads_secrets(db: TestDatabase, role: str) -> None:
    for privilege in ("select", "insert", "update", "delete"):
        assert not db.value("select has_table_privilege(%s, 'private.webhook_secrets', %s)", role, privilege)
        if privilege == "select":
            assert not db.value("select has_any_column_privilege(%s, 'private.webhook_secrets', 'select')", role)
