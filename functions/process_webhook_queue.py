"""Any method, process-webhook-queue: public.process_webhook_queue over HTTP."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_service
from ._shared.database import run_procedure
from ._shared.http import edge_function, reply


@edge_function(failure="Failed to process webhook queue")
async def process_webhook_queue(request: Request) -> Response:
    """Apply what carriers reported; for cron."""
    return reply(await run_procedure(request, verify_service(request), "process_webhook_queue"))
