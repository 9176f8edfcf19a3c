"""POST /api/call/stop-calling: public.stop_batch over HTTP."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.ending import WaitSeconds, end_batch
from ._shared.envelope import envelope, error_envelope
from ._shared.http import edge_function, read_body, reply
from ._shared.text import Text


class StopCalling(msgspec.Struct, rename="camel"):
    """batch_id: the batch to halt. user_id: the user responsible for it. Both UUIDs or external ids.
    skip_remaining: end the batch early. reason: for the audit trail. wait_seconds: wait so long, until no call can
    start at the carrier. end_calls: the carrier hangs up the calls in progress."""

    batch_id: Text
    user_id: Text
    skip_remaining: bool = False
    reason: Text | None = None
    wait_seconds: WaitSeconds | None = None
    end_calls: bool = False


@edge_function("POST", failure="Failed to stop calling service or call queue", errors=error_envelope)
async def stop_calling(request: Request) -> Response:
    """Stop the batch: its queue is emptied, calls in progress finish, or end at once with endCalls; it can be
    resumed."""
    caller = await verify_jwt(request)
    body = await read_body(request, StopCalling)
    stopped, figures, headers = await end_batch(request, caller, "stop_batch", **msgspec.structs.asdict(body))
    data = {"batchId": stopped["batch_id"], "status": stopped["status"]}
    if body.wait_seconds is not None:
        data |= {"callsInProgress": figures["calls_in_progress"], "callsStarting": figures["calls_starting"]}
    return reply(envelope(data), headers=headers)
