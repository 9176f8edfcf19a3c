"""The commands and the SQL statements of the READMEs work on the sample, as they stand."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openpyxl
import psycopg
import pytest

from functions.postgres_server import embedded_postgres
from functions.sample import OWNER, load_sample

from ..support.command import LASTCALL, Service, environment, lastcall, serve
from ..support.servers import short_lived_folder

pytestmark = pytest.mark.one_postgres

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = ("README.md", "functions/README.md", "functions/operator/README.md")
BATCH = "5eed0000-0000-4000-8000-0000000000b1"


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def commands(document: str) -> Iterator[str]:
    """The curl and lastcall commands of a document, but for those that wait for a terminal or for the batch's end."""
    for block in blocks(document, "sh"):
        command = ""
        for line in block.splitlines():
            command += line + "\n"
            if line.endswith("\\") or command.count("'") % 2:
                continue
            if command.startswith(("curl", "lastcall")) and not re.match("lastcall (login|watch)", command):
                yield command.strip()
            command = ""


COMMANDS = [command for document in DOCUMENTS for command in commands(document)]
STATEMENTS = [
    statement
    for document in ("README.md", "sql/README.md")
    for block in blocks(document, "sql")
    for statement in re.findall(r"(.*?;)[^\n]*\n", block, re.DOTALL)
]


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Service, Path, str]]:
    """A service with the sample, its folder and the owner's token."""
    with short_lived_folder() as folder, serve(folder, options=("--sample",)) as service:
        workbook = openpyxl.Workbook()
        assert workbook.active is not None
        for row in (["phone_number", "first_name"], ["+15557654321", "Ada"]):
            workbook.active.append(row)
        workbook.save(folder / "contacts.xlsx")
        (folder / "contacts.csv").write_text("phone_number,first_name\n+15557654321,Ada\n")
        token = lastcall("token", "--user", OWNER, folder=folder).stdout.strip()
        yield service, folder, token


@pytest.fixture
def sample(service: tuple[Service, Path, str]) -> Iterator[psycopg.Connection]:
    """A connection to the sample, made anew."""
    uri = embedded_postgres(service[1] / ".lastcall" / "postgres").uri()
    load_sample(uri)
    with psycopg.connect(uri, autocommit=True) as connection:
        yield connection


def hold(sample: psycopg.Connection) -> str:
    row = sample.execute("select (hold_calls(whole_agency => true, agency_id => agency_id)).hold_id from call_batches")
    (hold_id,) = row.fetchone() or ("",)
    return str(hold_id)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works_as_it_stands(
    service: tuple[Service, Path, str], sample: psycopg.Connection, command: str
) -> None:
    running, folder, token = service
    command = command.replace("http://127.0.0.1:8787", running.url).replace("curl", "curl --fail-with-body -sS", 1)
    if "lift" in command:
        command = command.replace("96f741", hold(sample)[:6])
    if re.match("lastcall (cancel|skip|hold) ", command):
        command = command.replace("lastcall", "yes_lastcall", 1)
    done = subprocess.run(
        ["bash", "-c", 'yes_lastcall() { lastcall "$@" --yes; }; ' + command],
        cwd=folder,
        env=environment(
            PATH=f"{Path(LASTCALL).parent}:{os.environ['PATH']}",
            TOKEN=token,
            LASTCALL_URL=running.url,
            LASTCALL_TOKEN=token,
        ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_statement_works_as_it_stands(sample: psycopg.Connection, statement: str) -> None:
    if "<hold>" in statement:
        statement = statement.replace("<hold>", hold(sample))
    if "resume_batch" in statement:
        sample.execute("select pause_batch(%s)", [BATCH])
    if "retry_batch" in statement:
        with pytest.raises(psycopg.Error, match="no failed contact"):
            sample.execute(statement.encode())
        return
    sample.execute(statement.encode())
