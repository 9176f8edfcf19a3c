"""Only a valid user token of this project gets through, whatever else is sent."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import jwt
import pytest
from starlette.testclient import TestClient

from functions._shared.auth import JwksCache
from functions._shared.settings import Settings
from functions.app import create_app

from ..support.keys import KeyServer, key_server, new_key
from ..support.ports import unanswered_port
from ..support.tokens import ISSUER, SECRET, b64, claims, handmade, token

pytestmark = pytest.mark.one_postgres

CANCEL = "/functions/v1/calls-batch-cancel"
STOP = "/api/call/stop-calling"
USER = "5f0e7a3c-1b2d-4c3e-8f90-a1b2c3d4e5f6"
PAST, FUTURE = 1_000_000_000, 4_000_000_000
# A valid token and a body without anything in it: 400, and no database is needed to know.
NO_DATABASE = "postgresql://nobody@/none?host=/nowhere"


class Answer:
    """The function's answer to a token and an empty object."""

    def __init__(self, client: TestClient, authorization: str | bytes | None, path: str = CANCEL) -> None:
        raw = authorization.encode() if isinstance(authorization, str) else authorization
        response = client.post(path, json={}, headers={} if raw is None else {b"Authorization": raw})
        self.status = response.status_code
        self.headers = response.headers
        self.body: dict[str, Any] = response.json()
        self.error: str = self.body["error"] if path == CANCEL else self.body["errorMessage"]

    @property
    def accepted(self) -> bool:
        return (self.status, self.error) == (400, "batch_id is required")

    @property
    def refused(self) -> bool:
        return self.status == 401 and self.headers["WWW-Authenticate"] == "Bearer"


def send(client: TestClient, encoded: str) -> Answer:
    return Answer(client, f"Bearer {encoded}")


# By the shared secret.


@pytest.fixture
def secret_client() -> Iterator[TestClient]:
    settings = Settings(database_url=NO_DATABASE, jwt_secret=SECRET, jwt_issuer=ISSUER)
    with TestClient(create_app(settings)) as client:
        yield client


def test_a_valid_token_is_accepted(secret_client: TestClient) -> None:
    assert send(secret_client, token(USER)).accepted


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["something", "authenticated"]},
        {"role": None},
        {"nbf": PAST},
        {"iat": FUTURE},  # a clock that is ahead of ours
        {"user_metadata": {"name": "Åsa \U0001f600", "role": "agency_owner"}},
        {"sub": USER.upper()},
    ],
    ids=str,
)
def test_a_valid_token_may_also_say(secret_client: TestClient, changes: dict[str, Any]) -> None:
    assert send(secret_client, token(USER, **changes)).accepted


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_the_scheme_is_bearer_in_any_case(secret_client: TestClient, scheme: str) -> None:
    assert Answer(secret_client, f"{scheme} {token(USER)}").accepted


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "anon"},
        {"aud": ["anon"]},
        {"aud": []},
        {"aud": 1},
        {"aud": {"authenticated": True}},
        {"aud": None},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": []},
        {"exp": float("nan")},
        {"exp": float("-inf")},
        {"iss": None},
        {"iss": "https://other.example/auth/v1"},
        {"iss": f"{ISSUER}/"},
        {"iss": [ISSUER]},
        {"sub": None},
        {"sub": ""},
        {"sub": "admin"},
        {"sub": f"{USER}\n"},
        {"sub": f"{{{USER}}}"},
        {"sub": 5},
        {"sub": [USER]},
        {"nbf": FUTURE},
        {"nbf": "soon"},
        {"role": "anon"},
        {"role": "service_role"},
        {"role": "postgres"},
        {"role": ""},
        {"role": ["authenticated"]},
    ],
    ids=str,
)
def test_a_claim_that_is_missing_or_wrong_is_refused(secret_client: TestClient, changes: dict[str, Any]) -> None:
    left = {name: value for name, value in {**claims(USER), **changes}.items() if value is not None}
    assert send(secret_client, handmade({"alg": "HS256", "typ": "JWT"}, left)).refused


@pytest.mark.parametrize("value", ["a\x00b", "\ud800", {"\x00": 1}, [float("inf")], float("nan")], ids=ascii)
def test_a_claim_that_postgres_cannot_hold_is_refused(secret_client: TestClient, value: Any) -> None:
    signed = handmade({"alg": "HS256", "typ": "JWT"}, {**claims(USER), "user_metadata": value})
    assert send(secret_client, signed).refused
    harmless = handmade({"alg": "HS256", "typ": "JWT"}, {**claims(USER), "user_metadata": r"C:\u0000"})
    assert not send(secret_client, harmless).refused


def test_an_expired_token_is_refused_and_told_so(secret_client: TestClient) -> None:
    answer = send(secret_client, token(USER, exp=PAST))
    assert answer.refused
    assert answer.error == "Token has expired"


def test_an_expired_token_with_another_signature_is_not_told_so(secret_client: TestClient) -> None:
    answer = send(secret_client, token(USER, "x" * 40, exp=PAST))
    assert answer.refused
    assert answer.error == "Invalid token"


def test_another_secret_is_refused(secret_client: TestClient) -> None:
    assert send(secret_client, token(USER, "another-secret-of-at-least-32-bytes!!")).refused


def test_a_changed_payload_is_refused(secret_client: TestClient) -> None:
    header, _, signature = token(USER).split(".")
    payload = b64(json.dumps(claims(str(uuid4()))).encode())
    assert send(secret_client, f"{header}.{payload}.{signature}").refused


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None, 5, [], ["HS256"], "HS384", "hs256", "RS256"])
def test_the_algorithm_must_be_hs256_where_a_secret_is_configured(secret_client: TestClient, alg: Any) -> None:
    signed = handmade({"alg": alg, "typ": "JWT"}, claims(USER))
    assert send(secret_client, signed).refused
    unsigned = signed.rpartition(".")[0]
    assert send(secret_client, f"{unsigned}.").refused
    assert send(secret_client, unsigned).refused


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_a_longer_hash_is_not_hs256(algorithm: str) -> None:
    # The keys are as long as these hashes want them.
    settings = Settings(database_url=NO_DATABASE, jwt_secret=SECRET * 2, jwt_issuer=ISSUER)
    with TestClient(create_app(settings)) as client:
        assert send(client, jwt.encode(claims(USER), SECRET * 2, algorithm="HS256")).accepted
        assert send(client, jwt.encode(claims(USER), SECRET * 2, algorithm=algorithm)).refused


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "EdDSA"])
def test_an_asymmetric_token_is_refused_where_a_secret_is_configured(secret_client: TestClient, algorithm: str) -> None:
    assert send(secret_client, new_key("a", algorithm).token(USER)).refused


@pytest.mark.parametrize("header", [[], "HS256", None, 1, ["alg", "HS256"]], ids=str)
def test_a_token_header_that_is_no_object_is_refused(secret_client: TestClient, header: Any) -> None:
    assert send(secret_client, handmade(header, claims(USER))).refused


@pytest.mark.parametrize("payload", [[], "x", None, 1, [["sub", USER]]], ids=str)
def test_a_token_payload_that_is_no_object_is_refused(secret_client: TestClient, payload: Any) -> None:
    assert send(secret_client, handmade({"alg": "HS256"}, payload)).refused


@pytest.mark.parametrize(
    "extra", [{"crit": ["exp"]}, {"crit": ["b64"], "b64": False}, {"crit": "x"}, {"b64": False}], ids=str
)
def test_a_token_with_extensions_that_must_be_understood_is_refused(
    secret_client: TestClient, extra: dict[str, Any]
) -> None:
    assert send(secret_client, handmade({"alg": "HS256", **extra}, claims(USER))).refused


GARBAGE = {
    "nothing after Bearer": "Bearer",
    "a space after Bearer": "Bearer  ",
    "empty": "",
    "Basic": "Basic dXNlcjpwYXNz",
    "no scheme": token(USER),
    "another scheme": f"Token {token(USER)}",
    "two tokens": f"Bearer {token(USER)} {token(USER)}",
    "a word": "Bearer garbage",
    "one dot": "Bearer a.b",
    "dots": "Bearer ...",
    "three dots": f"Bearer {token(USER)}.x",
    "five parts, as an encrypted token": "Bearer a.b.c.d.e",
    "not base64": "Bearer !!!.???.***",
    "base64 of no JSON": f"Bearer {b64(b'garbage')}.{b64(b'garbage')}.{b64(b'garbage')}",
    "huge": "Bearer " + "A" * 60_000,
    "huge parts": "Bearer " + ".".join(["A" * 20_000] * 3),
    "deep JSON": f"Bearer {b64(b'[' * 20_000)}.{b64(b'{}')}.{b64(b'x')}",
    "unicode": "Bearer ünïcödé.tökén.x".encode(),
    "more unicode": "Bearer \U0001f600.\U0001f600.\U0001f600".encode(),
    "bytes": b"Bearer \xff\xfe.\x80.\x81",
    "tabs": "Bearer\t" + token(USER),
}


@pytest.mark.parametrize("authorization", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("path", [CANCEL, STOP])
def test_anything_but_a_bearer_token_is_refused(
    secret_client: TestClient, authorization: str | bytes, path: str
) -> None:
    assert Answer(secret_client, authorization, path).refused


def test_a_payload_of_deep_json_is_refused(secret_client: TestClient) -> None:
    signed = f"{b64(json.dumps({'alg': 'HS256'}).encode())}.{b64(b'[' * 20_000)}"
    signature = b64(hmac.digest(SECRET.encode(), signed.encode(), hashlib.sha256))
    assert send(secret_client, f"{signed}.{signature}").refused


@pytest.mark.parametrize("key", ["sb_publishable_abc123", "sb_secret_abc123"])
def test_an_api_key_is_refused_with_what_to_send_instead(secret_client: TestClient, key: str) -> None:
    answer = send(secret_client, key)
    assert answer.refused
    assert answer.error == "An API key is not a user token: send the signed-in user's access token"


# Each function answers a refusal in its own envelope.


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        (None, "Missing authorization header"),
        ("", "Invalid authorization header"),
        ("Basic dXNlcjpwYXNz", "Invalid authorization header"),
        ("Bearer garbage", "Invalid token"),
        (f"Bearer {token(USER, exp=PAST)}", "Token has expired"),
        (f"Bearer {token(USER, role='service_role')}", "Not a user token"),
        (f"Bearer {token('nobody')}", "Token names no user"),
    ],
    ids=lambda value: "" if str(value).startswith("Bearer ey") else str(value),
)
def test_a_refusal_says_what_is_wrong_in_the_functions_own_envelope(
    secret_client: TestClient, authorization: str | None, message: str
) -> None:
    cancel, stop = (Answer(secret_client, authorization, path) for path in (CANCEL, STOP))
    assert cancel.refused
    assert stop.refused
    assert cancel.body == {"success": False, "error": message, "code": "unauthorized"}
    assert stop.body == {"message": "", "status": False, "code": 401, "errorMessage": message, "data": {}}


# By the project's published keys.


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyServer]:
    with key_server(monkeypatch) as server:
        yield server


@pytest.fixture
def keys_client(keys: KeyServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A service that verifies by the key server, and may ask it again at once."""
    monkeypatch.setattr(JwksCache, "COOLDOWN_S", 0.0)
    settings = Settings(database_url=NO_DATABASE, supabase_url=keys.url, jwt_issuer=ISSUER)
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "EdDSA"])
def test_a_token_signed_by_a_published_key_is_accepted(
    keys: KeyServer, keys_client: TestClient, algorithm: str
) -> None:
    key = new_key("a", algorithm)
    keys.publish(key)
    assert send(keys_client, key.token(USER)).accepted
    assert send(keys_client, key.token(USER, exp=PAST)).error == "Token has expired"
    assert send(keys_client, key.token(USER, role="service_role")).refused
    assert send(keys_client, key.token(USER, iss="https://other.example")).refused
    assert send(keys_client, new_key("a", algorithm).token(USER)).refused
    assert keys.fetches == 1


def test_a_published_key_need_not_name_its_algorithm(keys: KeyServer, keys_client: TestClient) -> None:
    signing = [new_key(algorithm, algorithm) for algorithm in ("ES256", "RS256", "EdDSA")]
    keys.publish(*({name: key.jwk[name] for name in key.jwk if name not in ("alg", "use")} for key in signing))
    assert all(send(keys_client, key.token(USER)).accepted for key in signing)


def test_no_secret_is_taken_where_keys_are_published(keys: KeyServer, keys_client: TestClient) -> None:
    key = new_key("a")
    keys.publish(key)
    assert send(keys_client, key.token(USER)).accepted
    header = {"alg": "HS256", "kid": "a"}
    public = json.dumps(key.jwk)
    for secret in (key.pem, key.pem.strip(), public.encode(), json.dumps(key.jwk["x"]).encode(), b"", b"a"):
        assert send(keys_client, handmade(header, claims(USER), secret)).refused
    assert send(keys_client, token(USER)).refused


def test_a_key_counts_for_its_own_algorithm_only(keys: KeyServer, keys_client: TestClient) -> None:
    elliptic, rsa = new_key("e"), new_key("r", "RS256")
    keys.publish(elliptic, rsa)
    assert send(keys_client, elliptic.token(USER, {"kid": "r"})).refused
    assert send(keys_client, rsa.token(USER, {"kid": "e"})).refused
    for algorithm in ("PS256", "RS384", "RS512"):
        other = jwt.encode(claims(USER), rsa.private, algorithm=algorithm, headers={"kid": "r"})
        assert send(keys_client, other).refused


def test_a_published_secret_is_no_key(keys: KeyServer, keys_client: TestClient) -> None:
    key = new_key("a")
    keys.publish({"kty": "oct", "kid": "s", "alg": "HS256", "k": b64(SECRET.encode())}, key)
    shared = jwt.encode(claims(USER), SECRET, algorithm="HS256", headers={"kid": "s"})
    assert send(keys_client, shared).refused
    assert send(keys_client, key.token(USER)).accepted


@pytest.mark.parametrize("kid", [None, "", "b", "A", "a\x00", "x" * 10_000, 5, ["a"], {"a": 1}, True], ids=repr)
def test_a_token_must_name_a_published_key(keys: KeyServer, keys_client: TestClient, kid: Any) -> None:
    key = new_key("a")
    keys.publish(key)
    header = {"alg": "ES256", "typ": "JWT", **({} if kid is None else {"kid": kid})}
    signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims(USER)).encode())}"
    signature = jwt.get_algorithm_by_name("ES256").sign(signed.encode(), key.private)
    assert send(keys_client, f"{signed}.{b64(signature)}").refused
    assert send(keys_client, key.token(USER)).accepted


def test_a_key_for_encryption_does_not_count(keys: KeyServer, keys_client: TestClient) -> None:
    key = new_key("a")
    keys.publish({**key.jwk, "use": "enc"})
    assert send(keys_client, key.token(USER)).refused


GOOD = new_key("good")
BAD_KEYS: dict[str, Any] = {
    "null": None,
    "a number": 5,
    "text": "key",
    "a list": [],
    "an empty object": {},
    "no id": {"kty": "EC"},
    "no key": {"kty": "EC", "kid": "bad"},
    "no base64": {"kty": "EC", "kid": "bad", "crv": "P-256", "x": "!", "y": "!"},
    "numbers": {"kty": "EC", "kid": "bad", "crv": "P-256", "x": 1, "y": 2},
    "an unknown curve": {**GOOD.jwk, "kid": "bad", "crv": "P-999"},
    "algorithm none": {**GOOD.jwk, "kid": "bad", "alg": "none"},
    "algorithm of secrets": {**GOOD.jwk, "kid": "bad", "alg": "HS256"},
    "an unknown algorithm": {**GOOD.jwk, "kid": "bad", "alg": "XX999"},
    "a list of algorithms": {**GOOD.jwk, "kid": "bad", "alg": ["ES256"]},
    "a point that is not on the curve": {**GOOD.jwk, "kid": "bad", "x": b64(b"\0" * 32)},
    "an id that is a list": {**GOOD.jwk, "kid": ["good"]},
    "an id that is an object": {**GOOD.jwk, "kid": {"good": 1}},
    "an id that is null": {**GOOD.jwk, "kid": None},
    "RSA without an exponent": {"kty": "RSA", "kid": "bad", "n": "AQAB", "e": ""},
    "RSA without a modulus": {"kty": "RSA", "kid": "bad"},
    "a key for agreement": {"kty": "OKP", "kid": "bad", "crv": "X25519", "x": b64(b"\1" * 32)},
    "a short key": {"kty": "OKP", "kid": "bad", "crv": "Ed25519", "x": b64(b"\1")},
    "a list of types": {"kty": ["EC"], "kid": "bad"},
}


@pytest.mark.parametrize("bad", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_a_good_key_counts_whatever_is_published_next_to_it(keys: KeyServer, keys_client: TestClient, bad: Any) -> None:
    keys.publish(bad, GOOD, bad)
    assert send(keys_client, GOOD.token(USER)).accepted


def test_a_key_that_appears_later_is_found_with_the_first_token_it_signed(
    keys: KeyServer, keys_client: TestClient
) -> None:
    old, new = new_key("old"), new_key("new", "RS256")
    keys.publish(old)
    assert send(keys_client, old.token(USER)).accepted
    keys.publish(old, new)
    assert send(keys_client, new.token(USER)).accepted
    assert keys.fetches == 2
    keys.publish(new)  # the old one is revoked; known when the keys are next asked for
    assert send(keys_client, new_key("unknown").token(USER)).refused
    assert send(keys_client, old.token(USER)).refused


def test_unknown_keys_make_one_fetch_per_cooldown_however_many_they_are(
    keys: KeyServer, keys_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key("a")
    keys.publish(key)
    assert send(keys_client, key.token(USER)).accepted
    monkeypatch.setattr(JwksCache, "COOLDOWN_S", 3600.0)
    for number in range(50):
        assert send(keys_client, key.token(USER, {"kid": f"unknown {number}"})).refused
    assert keys.fetches == 1
    assert send(keys_client, key.token(USER)).accepted


def test_unknown_keys_at_the_same_time_share_a_fetch(
    keys: KeyServer, keys_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key("a")
    keys.publish(key)
    assert send(keys_client, key.token(USER)).accepted
    monkeypatch.setattr(JwksCache, "COOLDOWN_S", 3600.0)
    # The cooldown that began with the first fetch counts, whoever comes.
    with ThreadPoolExecutor(16) as pool:
        sent = [pool.submit(send, keys_client, key.token(USER, {"kid": f"x{n}"})) for n in range(64)]
    assert all(answer.result().refused for answer in sent)
    assert keys.fetches == 1


def test_a_cold_start_under_load_fetches_once_and_refuses_nobody(
    keys: KeyServer, keys_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JwksCache, "COOLDOWN_S", 3600.0)
    key = new_key("a")
    keys.publish(key)
    keys.answers.clear()
    with ThreadPoolExecutor(16) as pool:
        sent = [pool.submit(send, keys_client, key.token(USER)) for _ in range(64)]
        assert keys.asked.wait(60)
        keys.answers.set()
    assert [answer.result().status for answer in sent] == [400] * 64
    assert keys.fetches == 1


def test_whoever_comes_while_a_new_key_is_fetched_waits_for_it(
    keys: KeyServer, keys_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = new_key("old"), new_key("new")
    keys.publish(old)
    assert send(keys_client, old.token(USER)).accepted
    keys.publish(old, new)
    keys.answers.clear()
    keys.asked.clear()
    with ThreadPoolExecutor(16) as pool:
        sent = [pool.submit(send, keys_client, new.token(USER)) for _ in range(16)]
        assert keys.asked.wait(60)
        monkeypatch.setattr(JwksCache, "COOLDOWN_S", 3600.0)
        keys.answers.set()
    assert all(answer.result().accepted for answer in sent)
    assert keys.fetches == 2


OUTAGES: dict[str, tuple[int, bytes]] = {
    "500": (500, b"<h1>Oops</h1>"),
    "404": (404, b"{}"),
    "a redirect": (302, b""),
    "HTML": (200, b"<html>maintenance</html>"),
    "nothing": (200, b""),
    "broken JSON": (200, b'{"keys": ['),
    "a list": (200, b"[]"),
    "null": (200, b"null"),
    "no keys": (200, b"{}"),
    "keys that are no list": (200, b'{"keys": 5}'),
    "keys that are null": (200, b'{"keys": null}'),
    "keys that are an object": (200, b'{"keys": {"kty": "EC"}}'),
    "keys that are text": (200, b'{"keys": "EC"}'),
    "deep JSON": (200, b"[" * 100_000),
    "bytes": (200, b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES.keys())
def test_without_any_keys_the_service_is_unavailable_rather_than_the_token_wrong(
    keys: KeyServer, keys_client: TestClient, outage: tuple[int, bytes]
) -> None:
    key = new_key("a")
    keys.fail(*outage)
    for path in (CANCEL, STOP):
        answer = Answer(keys_client, f"Bearer {key.token(USER)}", path)
        assert (answer.status, answer.error) == (503, "The keys that verify tokens are out of reach")
        assert int(answer.headers["Retry-After"]) > 0
    keys.publish(key)
    assert send(keys_client, key.token(USER)).accepted


@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES.keys())
def test_keys_once_known_go_on_to_count_in_an_outage(
    keys: KeyServer, keys_client: TestClient, monkeypatch: pytest.MonkeyPatch, outage: tuple[int, bytes]
) -> None:
    key = new_key("a")
    keys.publish(key)
    assert send(keys_client, key.token(USER)).accepted
    keys.fail(*outage)
    monkeypatch.setattr(JwksCache, "REFRESH_S", -1.0)  # at once
    assert send(keys_client, key.token(USER)).accepted
    assert send(keys_client, key.token(USER)).accepted
    assert keys.fetches == 3
    # Whether another key exists cannot be known now.
    assert send(keys_client, new_key("b").token(USER)).status == 503


@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES.keys())
def test_keys_once_known_count_in_an_outage_for_their_time_to_live_alone(
    keys: KeyServer, keys_client: TestClient, monkeypatch: pytest.MonkeyPatch, outage: tuple[int, bytes]
) -> None:
    key = new_key("a")
    keys.publish(key)
    assert send(keys_client, key.token(USER)).accepted
    keys.fail(*outage)
    with monkeypatch.context() as later:
        later.setattr(JwksCache, "TTL_S", -1.0)  # over at once
        for path in (CANCEL, STOP):
            answer = Answer(keys_client, f"Bearer {key.token(USER)}", path)
            assert (answer.status, answer.error) == (503, "The keys that verify tokens are out of reach")
    keys.publish(key)
    assert send(keys_client, key.token(USER)).accepted


def test_keys_are_asked_for_again_well_before_their_time_to_live_is_over() -> None:
    assert JwksCache.REFRESH_S + 10 * (JwksCache.COOLDOWN_S + JwksCache.TIMEOUT_S) < JwksCache.TTL_S == 600


def test_an_address_where_nobody_listens_is_an_outage() -> None:
    with unanswered_port() as port:
        settings = Settings(database_url=NO_DATABASE, supabase_url=f"http://127.0.0.1:{port}", jwt_issuer=ISSUER)
        with TestClient(create_app(settings)) as client:
            answer = send(client, new_key("a").token(USER))
    assert (answer.status, answer.headers["Retry-After"]) == (503, "2")


def test_an_outage_is_tried_once_per_cooldown(
    keys: KeyServer, keys_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JwksCache, "COOLDOWN_S", 3600.0)
    keys.fail()
    key = new_key("a")
    assert [send(keys_client, key.token(USER)).status for _ in range(20)] == [503] * 20
    assert keys.fetches == 1


def test_a_revoked_key_counts_no_more_when_the_keys_were_asked_for_again(
    keys: KeyServer, keys_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = new_key("old"), new_key("new")
    keys.publish(old)
    assert send(keys_client, old.token(USER)).accepted
    keys.publish(new)
    assert send(keys_client, old.token(USER)).accepted
    assert keys.fetches == 1
    monkeypatch.setattr(JwksCache, "REFRESH_S", -1.0)
    assert send(keys_client, old.token(USER)).refused


def test_an_empty_list_of_keys_is_an_answer(keys: KeyServer, keys_client: TestClient) -> None:
    keys.publish()
    assert send(keys_client, new_key("a").token(USER)).refused


def test_a_key_server_that_hangs_holds_up_nobody_whose_key_is_known(
    keys: KeyServer, keys_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = new_key("a"), new_key("b")
    keys.publish(key)
    assert send(keys_client, key.token(USER)).accepted
    monkeypatch.setattr(JwksCache, "TIMEOUT_S", 600.0)
    monkeypatch.setattr(JwksCache, "REFRESH_S", -1.0)
    keys.answers.clear()
    keys.asked.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(send, keys_client, other.token(USER))
        assert keys.asked.wait(60)
        # The fetch does not end before these are answered.
        assert all(send(keys_client, key.token(USER)).accepted for _ in range(10))
        assert not waiting.done()
        keys.publish(key, other)
        keys.answers.set()
        assert waiting.result().accepted


def test_a_key_server_that_hangs_does_not_hold_up_who_would_refresh_a_known_key(
    keys: KeyServer, keys_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key("a")
    keys.publish(key)
    assert send(keys_client, key.token(USER)).accepted
    monkeypatch.setattr(JwksCache, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(JwksCache, "REFRESH_S", -1.0)
    keys.answers.clear()
    assert send(keys_client, key.token(USER)).accepted


@pytest.mark.parametrize("drips", [False, True], ids=["silent", "a byte at a time"])
def test_a_key_server_that_hangs_is_given_up(
    keys: KeyServer, keys_client: TestClient, monkeypatch: pytest.MonkeyPatch, drips: bool
) -> None:
    key = new_key("a")
    keys.publish(key)
    keys.drips = drips
    if not drips:
        keys.answers.clear()
    with monkeypatch.context() as hurried:
        hurried.setattr(JwksCache, "TIMEOUT_S", 0.3)
        assert send(keys_client, key.token(USER)).status == 503
    keys.drips = False
    keys.answers.set()
    assert send(keys_client, key.token(USER)).accepted


def test_an_answer_without_end_is_given_up(keys: KeyServer, keys_client: TestClient) -> None:
    key = new_key("a")
    keys.fail(200, b" " * 3_000_000 + json.dumps({"keys": [key.jwk]}).encode())
    assert send(keys_client, key.token(USER)).status == 503


def test_keys_and_secret_together_mean_the_secret(keys: KeyServer) -> None:
    key = new_key("a")
    keys.publish(key)
    settings = Settings(database_url=NO_DATABASE, supabase_url=keys.url, jwt_secret=SECRET, jwt_issuer=ISSUER)
    with TestClient(create_app(settings)) as client:
        assert send(client, token(USER)).accepted
        assert send(client, key.token(USER)).refused
    assert keys.fetches == 0
