"""POST calls-opt-out: public.opt_out over HTTP."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.database import run_procedure
from ._shared.http import edge_function, read_body, reply
from ._shared.text import Text


class OptOut(msgspec.Struct):
    """phone_number: E.164. source: where the person said no. reason: for the do-not-call list and the audit trail."""

    phone_number: Text
    source: Text | None = None
    reason: Text | None = None


@edge_function("POST", failure="Failed to opt out")
async def calls_opt_out(request: Request) -> Response:
    """Never call a number again for the caller's agency, in whichever batch."""
    caller = await verify_jwt(request)
    body = await read_body(request, OptOut)
    return reply(await run_procedure(request, caller, "opt_out", **msgspec.structs.asdict(body)))
