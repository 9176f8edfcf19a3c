"""The one error that a function answers with."""

from __future__ import annotations

from typing import Any


class FunctionError(Exception):
    """An answer other than success: status, a short code for programs, a message for people; details that
    the answer shows beside them."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: dict[str, str] | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}
        self.details = details or {}


def unavailable(code: str, message: str) -> FunctionError:
    """503: nothing is wrong with the request; it may be repeated after the seconds in Retry-After."""
    return FunctionError(503, code, message, {"Retry-After": "2"})
