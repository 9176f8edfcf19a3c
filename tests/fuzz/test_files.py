"""Uploaded files: forms, CSV and workbooks."""

from __future__ import annotations

import asyncio
import io
import tempfile
import zipfile
from typing import Any

import hypothesis.strategies as st
import psutil
import pytest
from hypothesis import given
from openpyxl import Workbook
from openpyxl.xml.constants import SHARED_STRINGS, SHEET_MAIN_NS
from starlette.testclient import TestClient

from functions._shared import contact_reader
from functions._shared.contact_file import FileError, read_contacts

from ..support.database import TestDatabase
from ..support.tokens import bearer
from . import strategies
from .rule import PHONE_NUMBER, PLANTED, fuzz, heard, holds

PATH = "/functions/v1/calls-batch-import"

# Forms.

CHARSETS = [
    "utf-8",
    "utf-7",
    "utf-16",
    "idna",
    "punycode",
    "unicode_escape",
    "undefined",
    "rot13",
    "zlib",
    "\xff",
    "x" * 999,
]
DISPOSITIONS = [
    'form-data; name="file"; filename="a.csv"',
    'form-data; name="file"; filename="../../a.xlsx"',
    "form-data; name=\"file\"; filename*=utf-16''%ff%fea.csv",
    'form-data; name="file"',
    'form-data; name="batchId"',
    'form-data; name="allowedDays"',
    'form-data; name="calling_numbers"',
    'form-data; name=""',
    "form-data",
    "attachment; filename=a.csv",
    'form-data; name="\\"',
    f'form-data; name="{"x" * 5_000}"',
]
VALUES = [
    b"",
    b"phone_number\n+15550137137\n",
    b"[" * 60_000,
    b"+2AA-",
    b"\\ud800",
    b"[1e999]",
    b"\xff\xfe\x00",
    b"--b--",
    b"x" * 70_000,
]
part = st.tuples(st.sampled_from(DISPOSITIONS), st.sampled_from(VALUES) | st.binary(max_size=40))


def form(parts: list[tuple[str, bytes]], boundary: bytes, end: bytes) -> bytes:
    lines = [
        b"--%s\r\nContent-Disposition: %s\r\n\r\n%s\r\n" % (boundary, name.encode(), value) for name, value in parts
    ]
    return b"".join(lines) + end


@fuzz(40)
@given(
    parts=st.lists(part, max_size=3),
    end=st.sampled_from([b"--b--\r\n", b"--b--", b"", b"--b", b"\r\n--b\r\n\r\n", b"--b\r\nX: " + b"y" * 100_000]),
    charset=st.sampled_from(CHARSETS),
    boundary=st.sampled_from(["b", '"b"', "", "x" * 5_000, "b; boundary=c", "\xff"]),
    damage=st.tuples(st.integers(0, 300), st.binary(max_size=3)),
)
def test_a_form(
    client: TestClient, db: TestDatabase, parts: Any, end: bytes, charset: str, boundary: str, damage: Any
) -> None:
    at, garbage = damage
    body = form(parts, b"b", end)
    content_type = f"multipart/form-data; charset={charset}; boundary={boundary}".encode("latin-1")
    headers = {b"Authorization": bearer(db.agency())["Authorization"].encode(), b"Content-Type": content_type}
    with heard() as log:
        holds(client.post(PATH, content=body[:at] + garbage + body[at:], headers=headers), log)


# Files. A file that cannot be read is a FileError; the groups of any other have all its rows, to the last.


def read(data: bytes, name: str) -> int | None:
    """How many rows it has; None: it cannot be read."""
    with heard():
        try:
            contacts = read_contacts(io.BytesIO(data), name)
        except FileError as error:
            assert PLANTED not in str(error)
            return None
        assert all(contacts.read(group).decode() for group in contacts.groups)
        contacts.close()
        return contacts.rows


cell = st.sampled_from(
    ["", PHONE_NUMBER, PLANTED, '"', '""', '"a\nb"', "\x00", "=cmd|' /C calc'!A0", "x" * 140_000, "\ufeff", "'"]
)
rows = st.lists(st.lists(cell | strategies.text, max_size=4), max_size=5)


@fuzz(200)
@given(
    header=st.sampled_from(
        ["phone_number,a,b", "phone_number;phoneNumber", "\ufeffphone number\tx", "a", '"phone_number', ""]
    ),
    rows=rows,
    delimiter=st.sampled_from(",;\t"),
    newline=st.sampled_from(["\n", "\r\n", "\r", "\x0b", "\u2028"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-32"]),
)
def test_a_csv(header: str, rows: list[list[str]], delimiter: str, newline: str, encoding: str) -> None:
    text = newline.join([header, *(delimiter.join(row) for row in rows)])
    read(text.encode(encoding, errors="replace"), "a.csv")


@fuzz(100)
@given(st.binary(max_size=200), st.sampled_from(["a.csv", "a.xlsx", "a.XLSX", "a", "", "a.xls", ".csv"]))
def test_any_bytes(data: bytes, name: str) -> None:
    read(data, name)


def parts_of_a_workbook() -> dict[str, bytes]:
    book = Workbook()
    sheet = book.worksheets[0]
    sheet.append(["phone_number", "plan"])
    sheet.append([PHONE_NUMBER, PLANTED])
    file = io.BytesIO()
    book.save(file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    strings = f'<Override PartName="/xl/sharedStrings.xml" ContentType="{SHARED_STRINGS}"/></Types>'
    parts["[Content_Types].xml"] = parts["[Content_Types].xml"].replace(b"</Types>", strings.encode())
    return {**parts, "xl/sharedStrings.xml": f'<sst xmlns="{SHEET_MAIN_NS}"><si><t>x</t></si></sst>'.encode()}


def workbook(parts: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


PARTS = parts_of_a_workbook()
SHEET = "xl/worksheets/sheet1.xml"
HEADER_ROW = '<row><c t="inlineStr"><is><t>phone_number</t></is></c></row>'
CELLS = [
    '<c t="n"><v>1e999</v></c>', '<c t="n"><v>nan</v></c>', '<c t="d"><v>99999-99-99</v></c>', '<c t="s"><v>-5</v></c>',
    '<c t="s"><v>999999</v></c>', '<c t="e"><v>#REF!</v></c>', '<c t="b"><v>7</v></c>', '<c t="zzz"><v>1</v></c>',
    "<c/>",
    '<c r="XFD1048576"><v>1</v></c>', '<c r="A0"><v>1</v></c>', '<c r="$A$1:B2"/>', '<c s="999"><v>1</v></c>',
    '<c><f>WEBSERVICE("http://evil.example")</f><v>1</v></c>',
    '<c t="inlineStr"><is><t>_xD800_&#x10FFFF;</t></is></c>',
    f'<c t="n"><v>{"9" * 5_000}</v></c>', f'<c t="inlineStr"><is><t>{PHONE_NUMBER}</t></is></c>',
    '<c t="str"><v>_x0000_</v></c>',
]  # fmt: skip
ROWS = ['<row r="0">', '<row r="-1">', '<row r="x">', "<row>", '<row r="5000" spans="1:99999">']


def sheet(rows: list[tuple[str, list[str]]], prologue: str = "", dimension: str = "") -> bytes:
    body = "".join(f"{row}{''.join(cells)}</row>" for row, cells in rows)
    data = f"<sheetData>{HEADER_ROW}{body}</sheetData>"
    return f'{prologue}<worksheet xmlns="{SHEET_MAIN_NS}">{dimension}{data}</worksheet>'.encode()


@fuzz(100)
@given(
    rows=st.lists(st.tuples(st.sampled_from(ROWS), st.lists(st.sampled_from(CELLS), max_size=4)), max_size=3),
    dimension=st.sampled_from(
        ["", '<dimension ref="A1:XFD1048576"/>', '<dimension ref="x"/>', '<dimension ref="A99999999999"/>']
    ),
)
def test_a_sheet(rows: Any, dimension: str) -> None:
    read(workbook({**PARTS, SHEET: sheet(rows, dimension=dimension)}), "a.xlsx")


@fuzz(100)
@given(
    name=st.sampled_from(sorted(PARTS)),
    at=st.integers(0, 2_000),
    garbage=st.binary(max_size=4) | st.sampled_from([b"<", b"&x;", b"]]>", b"\x00", b'"', b"<!DOCTYPE x>"]),
    length=st.none() | st.integers(0, 5_000),
)
def test_a_damaged_workbook(name: str, at: int, garbage: bytes, length: int | None) -> None:
    content = PARTS[name]
    data = workbook({**PARTS, name: content[:at] + garbage + content[at:]})
    read(data[:length], "a.xlsx")


@pytest.mark.parametrize("entity", ['SYSTEM "file:///etc/hostname"', 'SYSTEM "http://127.0.0.1:1/x"'])
def test_entities_outside_of_a_workbook_are_not_followed(entity: str) -> None:
    row = ("<row>", ['<c t="inlineStr"><is><t>&a;</t></is></c>'])
    assert read(workbook({**PARTS, SHEET: sheet([row], f"<!DOCTYPE x [<!ENTITY a {entity}>]>")}), "a.xlsx") is None


# Bombs: small files that are large in memory or long to read.


ENTITY = f'<!DOCTYPE x [<!ENTITY a "{"A" * 50_000}">]>'
BOMBS = {
    "a row of cells": (
        "xl/worksheets/sheet1.xml",
        f'<worksheet xmlns="{SHEET_MAIN_NS}"><sheetData><row>',
        "<c/>",
        10_000_000,
    ),
    "styles": ("xl/styles.xml", f'<styleSheet xmlns="{SHEET_MAIN_NS}"><cellXfs>', "<xf/>", 3_000_000),
    "an entity": ("xl/sharedStrings.xml", f'{ENTITY}<sst xmlns="{SHEET_MAIN_NS}">', "<si><t>&a;</t></si>", 100_000),
    "strings": ("xl/sharedStrings.xml", f'<sst xmlns="{SHEET_MAIN_NS}">', "<si><t>ab</t></si>", 4_000_000),
}


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of the process that reads a file, in which every honest file of the tests can be read."""
    monkeypatch.setattr(contact_reader, "MAX_MEMORY_BYTES", 256 << 20)
    monkeypatch.setattr(contact_reader, "MAX_CPU_S", 5)


def read_apart(data: bytes, name: str = "a.xlsx") -> int:
    async def run() -> int:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            contacts = await contact_reader.read_apart(file, name)
            contacts.close()
            return contacts.rows

    return asyncio.run(run())


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_workbook_that_would_take_all_memory_or_time_is_refused(bomb: tuple[str, str, str, int]) -> None:
    part, start, repeated, times = bomb
    data = workbook({**PARTS, part: (start + repeated * times).encode()})
    assert len(data) < 1_000_000
    with pytest.raises(FileError):
        read_apart(data)


def test_a_csv_row_without_end_is_refused() -> None:
    line = b'"' + b"x" * 100_000 + b'\n",'
    assert read(b"phone_number\n" + line * 10, "a.csv") == 1
    assert read(b"phone_number\n" + line * 11, "a.csv") is None


@pytest.mark.usefixtures("little")
def test_an_honest_file_is_read_within_them() -> None:
    assert read_apart(workbook(PARTS)) == 1
    assert read_apart(b"phone_number\n" + b"+15550137137\n" * 20_000, "a.csv") == 20_000


def test_the_process_that_reads_a_file_knows_no_secret_and_ends_with_who_waits_for_it() -> None:
    others = set(psutil.Process().children())

    def children() -> set[psutil.Process]:
        return set(psutil.Process().children()) - others

    async def run() -> None:
        with tempfile.TemporaryFile() as file:
            file.write(b"phone_number\n" + b"+15550137137\n" * 1_000_000)
            reading = asyncio.create_task(contact_reader.read_apart(file, "a.csv"))
            await asyncio.sleep(0)
            (child,) = children()
            assert set(child.environ()) <= {"PYTHONPATH", "LC_CTYPE", "PATH", "LD_LIBRARY_PATH", "TMPDIR"}
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert child not in children()

    asyncio.run(run())
