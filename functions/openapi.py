"""GET /openapi.yaml: the description of all functions, for programs."""

from __future__ import annotations

from functools import cache

from starlette.requests import Request
from starlette.responses import Response

from ._shared.document import OPENAPI, Document
from ._shared.http import edge_function


@edge_function("GET", failure="Failed to read the description")
async def openapi(request: Request) -> Response:
    """The file as it is: nothing here takes it apart."""
    return _document().reply(request)


@cache
def _document() -> Document:
    return Document(OPENAPI.read_bytes(), "application/yaml")
