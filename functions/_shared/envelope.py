"""The envelope in which stop-calling and its relatives answer."""

from __future__ import annotations

from typing import Any

from .errors import FunctionError


def envelope(data: dict[str, Any], *, message: str = "", code: int = 200, error_message: str = "") -> dict[str, Any]:
    """The body of a reply."""
    return {
        "message": message,
        "status": code == 200,
        "code": code,
        "errorMessage": error_message,
        "data": data,
    }


def error_envelope(error: FunctionError) -> dict[str, Any]:
    """The body of an error."""
    return envelope(error.details, code=error.status, error_message=error.message)
