"""GET /openapi.yaml and GET /docs: the description of all functions, for programs and for people."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from functions._shared.document import OPENAPI
from functions._shared.settings import Settings
from functions.app import create_app

from ..support.openapi import api, operations
from ..support.tokens import ISSUER, SECRET

NO_DATABASE = Settings(database_url="postgresql://nobody@/none?host=/nowhere", jwt_secret=SECRET, jwt_issuer=ISSUER)
BOTH = pytest.mark.parametrize("path", ["/openapi.yaml", "/docs"])


@pytest.fixture
def alone() -> Iterator[TestClient]:
    """A service whose database is down: neither needs it."""
    with TestClient(create_app(NO_DATABASE)) as client:
        yield client


class Page(HTMLParser):
    """The page as a browser reads it: elements, addresses, and the text in which a search looks."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.style = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for given, value in self.attributes if given == name]


@pytest.fixture
def page(alone: TestClient) -> Page:
    return Page(alone.get("/docs").text)


def test_the_file_is_served_as_it_is(alone: TestClient) -> None:
    answer = alone.get("/openapi.yaml")
    assert (answer.status_code, answer.content) == (200, OPENAPI.read_bytes())
    assert answer.headers["Content-Type"] == "application/yaml"


@BOTH
def test_a_client_with_a_cached_page_is_not_sent_it_again(alone: TestClient, path: str) -> None:
    etag = alone.get(path).headers["ETag"]
    for known in (etag, f"W/{etag}", f'"another", {etag}', "*"):
        answer = alone.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
    assert alone.get(path, headers={"If-None-Match": '"another"'}).status_code == 200


@BOTH
def test_it_is_read_by_get_and_head_only(alone: TestClient, path: str) -> None:
    answer = alone.post(path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert alone.head(path).status_code == 200


def test_the_page_shows_each_operation_and_each_schema(page: Page) -> None:
    for path, method, operation in operations():
        assert operation["operationId"] in page.values("id")
        assert path in page.text
        assert method.upper() in page.text
    for code in ("batch_already_cancelled", "idempotency_key_reused", "rows_invalid"):
        assert code in page.text
    assert {f"schema-{name}" for name in api()["components"]["schemas"]} <= set(page.values("id"))


def test_the_page_needs_no_script_and_no_other_host(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.elements)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("style", "src")]
    # It leads nowhere but to places on itself and to the file.
    ids = {f"#{place}" for place in page.values("id")}
    assert set(page.values("href")) <= ids | {"openapi.yaml"}
    assert len(ids) == len(page.values("id"))
    assert not re.search(r"url\(|@import", page.style)
    assert page.open == []


def test_the_pages_policy_allows_its_own_style_and_nothing_else(alone: TestClient, page: Page) -> None:
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert alone.get("/docs").headers["Content-Security-Policy"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def test_the_app_starts_and_serves_the_file_without_reading_yaml() -> None:
    program = (
        "import sys\n"
        "from starlette.testclient import TestClient\n"
        "from functions._shared.settings import Settings\n"
        "from functions.app import create_app\n"
        f"settings = Settings(database_url='postgresql:///none', jwt_secret={SECRET!r})\n"
        "assert TestClient(create_app(settings)).get('/openapi.yaml').status_code == 200\n"
        "assert 'yaml' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
