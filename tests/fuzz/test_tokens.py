"""Tokens, by a shared secret and by published keys."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from starlette.testclient import TestClient

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.keys import KeyServer, key_server, new_key
from ..support.tokens import ISSUER, SECRET, claims
from . import strategies
from .rule import PLANTED, fuzz, heard, holds

CANCEL = "/functions/v1/calls-batch-cancel"
USER = "5f0e7a3c-1b2d-4c3e-8f90-a1b2c3d4e5f6"
KEY = new_key("a")
RSA_KEY = new_key("r", "RS256")
NO_DATABASE = "postgresql://nobody@/none?host=/nowhere"


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(key: bytes, header: str, payload: str) -> str:
    """A token of exactly this JSON, signed by HMAC."""
    content = ".".join(base64url(part.encode(errors="surrogatepass")) for part in (header, payload))
    return f"{content}.{base64url(hmac.digest(key, content.encode(), hashlib.sha256))}"


header = strategies.spoiled({"alg": "HS256", "typ": "JWT", "kid": "a"}) | st.sampled_from(
    [
        json.dumps({"alg": alg, "kid": kid, **more})
        for alg in ("none", "HS256", "RS256", "ES256", "EdDSA", "HS512", "dir")
        for kid in ("a", "r", None, 5, ["a"], {"a": 1}, "../a", "a\0")
        for more in ({}, {"crit": ["exp"]}, {"jwk": KEY.jwk}, {"jku": "https://evil.example/"}, {"b64": False})
    ]
)
payload = strategies.spoiled({**claims(USER), "iat": 1, "nbf": 1, "user_metadata": {"name": PLANTED}})
valid = json.dumps(claims(USER))

forged = st.one_of(
    st.tuples(header, payload | st.just(valid)).map(
        lambda given: signed(b"another secret of 32 bytes or more", *given)
    ),
    # A public key taken for a secret.
    st.tuples(st.sampled_from([KEY.pem, RSA_KEY.pem, KEY.pem.strip(), b""]), header).map(
        lambda given: signed(given[0], given[1], valid)
    ),
    header.map(lambda given: f"{signed(b'', given, valid).rpartition('.')[0]}."),
    # The signature is good, and what it signs has changed.
    st.tuples(st.integers(0, 200), st.characters(codec="ascii", categories=["L", "N"])).map(
        lambda given: KEY.token(USER)[: given[0]] + given[1] + KEY.token(USER)[given[0] :] + "x"
    ),
    st.sampled_from(
        [
            ".",
            "..",
            "...",
            "a.b.c",
            "a.b.c.d.e",
            "." * 100_000,
            "e30.e30.",
            "e30.e30.e30",
            "A" * 1_000_000,
            "e30." * 50_000,
        ]
    ),
    st.text(alphabet="abcEYJ0.=-_+/ \t~\u00e9", max_size=60),
)
"""Tokens that nobody whose key counts has signed."""


def client_of(settings: Settings) -> TestClient:
    return TestClient(create_app(settings), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def secret_client() -> Iterator[TestClient]:
    settings = Settings(database_url=NO_DATABASE, jwt_secret=SECRET, jwt_issuer=ISSUER)
    with client_of(settings) as client:
        yield client


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyServer]:
    """For hostile keys alone."""
    with key_server(monkeypatch) as keys:
        yield keys


@pytest.fixture
def keys_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    with key_server(monkeypatch) as keys:
        keys.publish(KEY, RSA_KEY)
        with client_of(Settings(database_url=NO_DATABASE, supabase_url=keys.url, jwt_issuer=ISSUER)) as client:
            yield client


def answer(client: TestClient, authorization: bytes) -> Any:
    with heard() as log:
        response = client.post(CANCEL, headers={b"Authorization": authorization})
        holds(response, log)
    return response


@pytest.mark.parametrize("verifier", ["secret_client", "keys_client"])
def test_a_forged_token_is_401(request: pytest.FixtureRequest, verifier: str) -> None:
    client = request.getfixturevalue(verifier)

    @fuzz(250)
    @given(forged)
    def run(token: str) -> None:
        response = answer(client, b"Bearer " + token.encode())
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"

    run()


@fuzz(200)
@given(strategies.header_value)
def test_an_authorization_header_is_401(secret_client: TestClient, authorization: bytes) -> None:
    for given_header in (
        authorization,
        b"Bearer " + authorization,
        b"Basic " + authorization,
        b"Bearer\t" + authorization,
    ):
        assert answer(secret_client, given_header).status_code == 401


@fuzz(250)
@given(header=st.just('{"alg": "HS256"}') | header, payload=payload)
def test_whatever_a_signed_token_says(client: TestClient, header: str, payload: str) -> None:
    """Signed with the secret that counts: it is the user's, who has no agency here (403), or it is 401."""
    token = signed(SECRET.encode(), header, payload)
    with heard() as log:
        response = client.post(CANCEL, json={"batch_id": USER}, headers={"Authorization": f"Bearer {token}"})
        holds(response, log)
    assert response.status_code in (401, 403)


jwk = st.one_of(
    strategies.spoiled(KEY.jwk),
    strategies.spoiled(RSA_KEY.jwk),
    strategies.spoiled({"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "a"}),
    strategies.json_text,
)


@fuzz(80)
@given(
    strategies.encoded(
        st.lists(jwk, max_size=2).map(lambda found: f'{{"keys": [{",".join([*found, json.dumps(RSA_KEY.jwk)])}]}}')
        | strategies.spoiled({"keys": [KEY.jwk]})
        | strategies.json_text
    )
)
def test_hostile_keys(keys: KeyServer, body: bytes) -> None:
    """Whatever is published: it is out of reach (503), or its good keys count and no others."""
    keys.status, keys.body = 200, body
    with (
        client_of(Settings(database_url=NO_DATABASE, supabase_url=keys.url, jwt_issuer=ISSUER)) as client,
        heard() as log,
    ):
        statuses = [
            client.post(CANCEL, headers={"Authorization": f"Bearer {token}"}).status_code
            for token in (RSA_KEY.token(USER), KEY.token(USER), new_key("a").token(USER))
        ]
        assert set(statuses) <= {400, 401, 503}
        assert statuses[2] != 400
        assert PLANTED not in log.text
