"""Contacts, and the invalid rows of an import, as CSV: what the functions answer and `lastcall` writes."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import msgspec

COLUMNS = [
    "id", "phone_number", "first_name", "last_name", "email", "company", "title", "timezone", "status", "attempts",
    "max_attempts", "outcome", "duration_seconds", "outcome_notes", "call_id", "last_attempt_at", "completed_at",
    "created_at", "do_not_call", "custom_data",
]  # fmt: skip
# Spreadsheets take these characters, full-width forms included, for the beginning of a formula.
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-][0-9]+(\.[0-9]+)?", re.ASCII)


def contact_lines(contacts: list[dict[str, Any]]) -> bytes:
    """The lines of these contacts, as public.export_contacts gives them."""
    return csv_lines([[contact[column] for column in COLUMNS] for contact in contacts])


def csv_lines(rows: list[list[Any]]) -> bytes:
    """Rows as lines."""
    text = io.StringIO()
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    """A value as text that no spreadsheet computes: what looks like a formula gets a ' in front, but a
    number with a sign, such as a phone number, can do nothing and stays as it is."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def error_lines(errors: list[dict[str, Any]]) -> bytes:
    """The lines of an import's invalid rows, as public.list_import_errors gives them."""
    return csv_lines([[error["row"], error["phone_number"], error["error"]] for error in errors])


HEADER = csv_lines([COLUMNS])
"""The first line of contacts."""
ERRORS_HEADER = csv_lines([["row", "phone_number", "error"]])
"""The first line of invalid rows."""
