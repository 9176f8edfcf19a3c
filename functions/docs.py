"""GET /docs: the description of all functions, for people."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response

from ._shared.document import OPENAPI, Document
from ._shared.http import edge_function


@edge_function("GET", failure="Failed to show the description")
async def docs(request: Request) -> Response:
    """A page without scripts, made when it is first asked for."""
    return (await run_sync(_document)).reply(request)


@cache
def _document() -> Document:
    import yaml  # only here: no other function needs it

    from .docs_page import STYLE, page

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is seven times as fast
    body = page(yaml.load(OPENAPI.read_bytes(), Loader=loader))  # noqa: S506
    style = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Document(body.encode(), "text/html; charset=utf-8", {"Content-Security-Policy": policy})
