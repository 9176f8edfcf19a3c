"""The documents name what the code has: functions, settings, error codes; and their links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from functions._shared.settings import Settings

from ..support import function_table
from ..support.openapi import api

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if path.relative_to(ROOT).parts[0] in {".github", "functions", "sql", "supabase", "tests", "README.md"}
)
EACH = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(document: Path) -> str:
    """The document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """The names that links give to its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def codes(given: object) -> Iterator[str]:
    """The codes of errors of the OpenAPI file."""
    if isinstance(given, dict):
        code = given.get("code")
        if isinstance(code, dict):
            yield from (found for found in code.get("enum", []) if isinstance(found, str))
        for value in given.values():
            yield from codes(value)
    elif isinstance(given, list):
        for value in given:
            yield from codes(value)


@EACH
def test_each_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(document))
    broken = []
    for link in links:
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_top_readme_has_less_than_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_the_table_of_functions_is_the_generated_one() -> None:
    assert function_table.written() == function_table.table(), "run `make documents`"


class Recorded(dict[str, str]):
    """An environment that keeps the names that were looked up."""

    def __init__(self, given: dict[str, str]) -> None:
        super().__init__(given)
        self.names: set[str] = set()

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self.names.add(name)
        return super().get(name, default)


def test_each_setting_is_described_and_no_other() -> None:
    env = Recorded({"SUPABASE_JWT_SECRET": "s" * 32, "DATABASE_URL": "postgresql://host/db"})
    Settings.from_env(env)
    table = (ROOT / "functions" / "SETTINGS.md").read_text()
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    described = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    of_the_command = {"LASTCALL_URL", "LASTCALL_TOKEN"}
    opentelemetrys = {name for name in env.names if name.startswith("OTEL_")}
    assert {name for name in described if not name.startswith("OTEL_")} == (env.names - opentelemetrys) | of_the_command


def test_each_error_code_is_described_and_no_other() -> None:
    table = (ROOT / "functions" / "ERRORS.md").read_text()
    rows = [row.split("|")[2] for row in table.splitlines() if re.match(r"\| \d", row)]
    described = {code for row in rows for code in re.findall(r"`([^`]+)`", row)}
    patterns = [re.sub(r"<\w+>|…", r"\\w+", code) for code in described]
    made = set(codes(api()))
    assert {code for code in made if not any(re.fullmatch(pattern, code) for pattern in patterns)} == set()
    # A forwarder's, the console's, and those of a status that no test of the file reaches.
    unlisted = {code for code, pattern in zip(described, patterns, strict=True) if pattern == code} - made
    assert unlisted == {
        "agency_not_found", "app_timeout", "app_unavailable", "batch_already_failed", "batch_id_ambiguous",
        "forwarding_loop", "not_configured", "sort_invalid", "user_id_required",
    }  # fmt: skip
