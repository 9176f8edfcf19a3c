"""Contacts from a file, .csv or .xlsx, as the rows that the core imports: in bounded memory, whatever the file.

The file is read once from end to end before anything of it is used: what makes it unreadable as a whole refuses
it then, and what is wrong with one row goes with that row. Whether the contacts are valid is for the core to say.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import tempfile
import zipfile
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import IO, Any

import msgspec

GROUP_ROWS = 10_000
"""Most rows of a group: what the core takes at a time."""
_GROUP_BYTES = 4 << 20
_MAX_ROW_BYTES = 100_000
_MAX_LINE = 1 << 20
_MAX_COLUMNS = 200
_MAX_NAME = 200
# A workbook's sheets are streamed; its shared strings and its other parts are held in memory.
_MAX_SHEET_ROWS = 1_048_576
_MAX_PARTS = 1_000
_MAX_UNPACKED_BYTES = 1 << 30
_MAX_STRINGS_BYTES = 128 << 20
_MAX_OTHER_BYTES = 16 << 20

_COLUMNS = {
    name.replace("_", ""): name
    for name in ("phone_number", "first_name", "last_name", "email", "company", "title", "timezone", "max_attempts")
}
# How people space a phone number out; the spaces of a spreadsheet too.
_SPACING = dict.fromkeys(map(ord, " \t-.()/\u00a0\u202f\u2010\u2011\u2013"))
_PHONE_NUMBER = re.compile(r"\+\d+", re.ASCII)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_OLD_EXCEL = b"\xd0\xcf\x11\xe0"


class FileError(Exception):
    """The file cannot be imported: a short code for programs, and why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Group:
    """Rows that follow one another in the file, as a JSON array somewhere in the spool."""

    offset: int
    size: int
    last_row: int


@dataclass
class ContactFile:
    """A file that was read: its rows in groups, kept in a temporary file."""

    sha256: str
    spool: IO[bytes] = field(repr=False)
    groups: list[Group] = field(default_factory=list)
    rows: int = 0

    def read(self, group: Group) -> bytes:
        """A group's rows: a JSON array of contacts, each with its row in the file (the header is row 1), or with
        that and the error which kept it from being read."""
        self.spool.seek(group.offset)
        return self.spool.read(group.size)

    def close(self) -> None:
        """Forget the rows."""
        self.spool.close()


def read_contacts(file: IO[bytes], name: str, spool: IO[bytes] | None = None) -> ContactFile:
    """Read the whole file, whose name ends in .csv or .xlsx; spool: an empty file for its rows. Raises FileError."""
    with closing(_records(file, name)) as records:
        contacts = ContactFile(_sha256(file), spool or tempfile.TemporaryFile())  # noqa: SIM115
        try:
            _spool(records, _Columns(next(records, [])), contacts)
            if contacts.rows == 0:
                raise FileError("file_empty", "The file has no contacts")
        except BaseException:
            contacts.close()
            raise
    return contacts


def _sha256(file: IO[bytes]) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _records(file: IO[bytes], name: str) -> Generator[list[str] | str]:
    """The rows of the file, the header first: cells, or what kept them from being read."""
    file.seek(0)
    start = file.read(4)
    if not start:
        raise FileError("file_empty", "The file is empty")
    kind = name.lower().rpartition(".")[2]
    if kind == "xls" or start == _OLD_EXCEL:
        raise FileError(
            "file_type_invalid", "Old Excel files (.xls) and protected ones cannot be read: save as .xlsx or .csv"
        )
    if kind == "csv":
        return _csv_records(file, _delimiter(file))
    if kind == "xlsx":
        return _xlsx_records(file)
    raise FileError("file_type_invalid", "The file's name must end in .csv or .xlsx")


def _spool(records: Iterator[list[str] | str], columns: _Columns, contacts: ContactFile) -> None:
    """Write the rows that are not blank, in groups."""
    group: list[bytes] = []
    size = number = 0

    def end_group() -> None:
        data = b"[" + b",".join(group) + b"]"
        contacts.groups.append(Group(contacts.spool.tell(), len(data), number))
        contacts.spool.write(data)
        contacts.rows += len(group)
        group.clear()

    for number, record in enumerate(records, 2):
        contact = columns.contact(record)
        if contact is None:
            continue
        row = msgspec.json.encode({"row": number, **contact})
        if len(row) > _MAX_ROW_BYTES:
            row = msgspec.json.encode({"row": number, "error": f"has more than {_MAX_ROW_BYTES} bytes"})
        group.append(row)
        size += len(row)
        if len(group) == GROUP_ROWS or size > _GROUP_BYTES:
            end_group()
            size = 0
    if group:
        end_group()


class _Columns:
    """The meaning of each column, by the header."""

    def __init__(self, header: list[str] | str) -> None:
        names = [name.strip() for name in header] if isinstance(header, list) else []
        while names and not names[-1]:
            names.pop()
        if len(names) > _MAX_COLUMNS or any(len(name) > _MAX_NAME or "\x00" in name for name in names):
            raise FileError(
                "header_invalid", f"The header may have {_MAX_COLUMNS} columns with names of {_MAX_NAME} characters"
            )
        self.known = [_COLUMNS.get(_plain(name)) for name in names]
        self.names = names
        given = [known or name for known, name in zip(self.known, names, strict=True) if name]
        if "phone_number" not in self.known:
            raise FileError("phone_column_missing", "The first row must name the columns, one of them phone_number")
        for name in given:
            if given.count(name) > 1:
                raise FileError("header_invalid", f"Two columns are called {name}")

    def contact(self, record: list[str] | str) -> dict[str, Any] | None:
        """The contact of a row, or why there is none; None: the row is blank."""
        if isinstance(record, str):
            return {"error": record}
        contact: dict[str, Any] = {}
        custom = {}
        error = "has a cell in a column without a name" if any(map(str.strip, record[len(self.names) :])) else None
        for known, name, cell in zip(self.known, self.names, record, strict=False):
            text = cell.strip()
            if not text:
                continue
            if "\x00" in text:
                error = "has a NUL character"
            elif known == "phone_number":
                contact[known] = _phone_number(text)
            elif known == "max_attempts":
                contact[known] = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text
            elif known:
                contact[known] = text
            elif name:
                custom[name] = text
            else:
                error = "has a cell in a column without a name"
        if error:
            return {"phone_number": contact.get("phone_number"), "error": error}
        if custom:
            contact["custom_data"] = custom
        return contact or None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "")


def _phone_number(text: str) -> str:
    """A number with its country code, + or 00 in front, without what spaces it out; anything else as given."""
    number = text.translate(_SPACING)
    if number.startswith("00"):
        number = f"+{number[2:]}"
    return number if _PHONE_NUMBER.fullmatch(number) else text


def _lines(file: IO[bytes]) -> Generator[str]:
    file.seek(0)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        while line := text.readline(_MAX_LINE + 1):
            if len(line) > _MAX_LINE:
                raise FileError("file_invalid", f"A line has more than {_MAX_LINE} characters")
            yield line
    except UnicodeDecodeError:
        raise FileError("file_invalid", "The file must be UTF-8: save it as CSV UTF-8") from None
    finally:
        text.detach()


def _delimiter(file: IO[bytes]) -> str:
    """The one by which the first row has a column of phone numbers; of several, that with most columns."""
    file.seek(0)
    if file.read(2) in _UTF16:
        raise FileError("file_invalid", "The file is UTF-16 and must be UTF-8: save it as CSV UTF-8")
    found = {}
    for delimiter in ",;\t":
        with closing(_csv_records(file, delimiter)) as records:
            header = next(records, [])
        if isinstance(header, list) and "phonenumber" in map(_plain, map(str.strip, header)):
            found[delimiter] = len(header)
    return max(found, key=lambda delimiter: found[delimiter], default=",")


def _csv_records(file: IO[bytes], delimiter: str) -> Generator[list[str] | str]:
    taken = 0

    def counted(lines: Iterator[str]) -> Iterator[str]:
        nonlocal taken
        for line in lines:
            taken += len(line)
            if taken > _MAX_LINE:
                raise FileError("file_invalid", f"A row has more than {_MAX_LINE} characters")
            yield line

    with closing(_lines(file)) as lines:
        reader = csv.reader(counted(lines), delimiter=delimiter, strict=True)
        while True:
            before, taken = reader.line_num, 0
            try:
                yield next(reader)
            except StopIteration:
                return
            except csv.Error:
                if reader.line_num > before + 1:
                    # Where the row ends, and how many rows it swallowed, is anybody's guess.
                    raise FileError("file_invalid", f"A quote in line {before + 1} is not closed") from None
                yield "has a quote out of place"


def _xlsx_records(file: IO[bytes]) -> Generator[list[str] | str]:
    from openpyxl import load_workbook  # only here: it takes a while to load

    file.seek(0)
    try:
        _check_archive(file)
        workbook = load_workbook(file, read_only=True, data_only=True, keep_links=False)
        try:
            sheet = workbook.worksheets[0]
            sheet.reset_dimensions()  # what a file says of its own size is often wrong
            for row in sheet.iter_rows(max_row=_MAX_SHEET_ROWS, max_col=_MAX_COLUMNS + 1, values_only=True):
                # A file of a few bytes can say that a million rows are left out.
                yield [] if row.count(None) == len(row) else ["" if value is None else _text(value) for value in row]
        finally:
            workbook.close()
    except (FileError, MemoryError):
        raise
    except Exception:  # whatever a broken archive or broken XML makes of it
        raise FileError("file_invalid", "The file is not a readable .xlsx workbook") from None


def _check_archive(file: IO[bytes]) -> None:
    """Refuse what would unpack to more than a workbook of contacts can be; unpacking stops at the sizes said."""
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    too_large = len(parts) > _MAX_PARTS or sum(part.file_size for part in parts) > _MAX_UNPACKED_BYTES
    for part in parts:
        limit = _MAX_STRINGS_BYTES if part.filename.lower().endswith("sharedstrings.xml") else _MAX_OTHER_BYTES
        in_memory = not part.filename.lower().startswith("xl/worksheets/")
        too_large = too_large or (in_memory and part.file_size > limit)
    if too_large:
        raise FileError("file_invalid", "The workbook is too large: save it as .csv")


def _text(value: Any) -> str:
    """A cell as it would be in a CSV."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        case datetime() if value.time() == time():
            return value.date().isoformat()
        case datetime() | date() | time():
            return value.isoformat()
        case _:
            return str(value)
