"""calls-batch-process: one bounded run of the dialer over HTTP, for cron. Any method."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_service
from ._shared.errors import FunctionError
from ._shared.http import edge_function, reply

MAX_CALLS = 1000
RUN_S = 40.0
"""Seconds for which a run claims. With what is in flight then it ends before the next minute's run."""


@edge_function(failure="Failed to process batches")
async def calls_batch_process(request: Request) -> Response:
    """Start and complete batches, give back what other dialers lost, and place the next calls."""
    # Only here: what the other functions do not need, they do not load.
    from .dialer.carrier import connect_carrier
    from .dialer.dialer import Dialer

    verify_service(request)
    state = request.app.state
    if state.settings.carrier is None:
        raise FunctionError(500, "no_carrier", "No carrier is configured: set LASTCALL_CARRIER")
    state.carrier = state.carrier or connect_carrier(state.settings)
    dialer = Dialer(state.database, state.carrier, state.settings, state.telemetry)
    done = await dialer.run_once(MAX_CALLS, RUN_S)
    return reply(done.reply())
