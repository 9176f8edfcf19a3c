"""The Starlette app: which function answers at which path."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from ._shared.auth import TokenVerifier
from ._shared.contact_reader import FILES_AT_ONCE
from ._shared.database import connect_database
from ._shared.http import RequestContext, not_found
from ._shared.log import configure_logging
from ._shared.settings import Settings
from .calls_batch_add_contacts import calls_batch_add_contacts
from .calls_batch_cancel import calls_batch_cancel
from .calls_batch_create import calls_batch_create
from .calls_batch_events import calls_batch_events
from .calls_batch_export import calls_batch_export
from .calls_batch_get import calls_batch_get
from .calls_batch_import import calls_batch_import
from .calls_batch_list import calls_batch_list
from .calls_batch_pause import calls_batch_pause
from .calls_batch_process import calls_batch_process
from .calls_batch_resume import calls_batch_resume
from .calls_batch_retry import calls_batch_retry
from .calls_batch_silence import calls_batch_silence
from .calls_batch_skip import calls_batch_skip
from .calls_hold import calls_hold
from .calls_hold_lift import calls_hold_lift
from .calls_hold_list import calls_hold_list
from .calls_opt_out import calls_opt_out
from .docs import docs
from .get_user_batch import get_user_batch
from .health import health
from .list_user_batches import list_user_batches
from .openapi import openapi
from .process_webhook_queue import process_webhook_queue
from .root import root
from .start_calling import start_calling
from .stop_calling import stop_calling
from .telemetry import ProcessTelemetry
from .webhook_ingest import webhook_ingest

_EDGE_FUNCTIONS = {
    "calls-batch-add-contacts": calls_batch_add_contacts,
    "calls-batch-cancel": calls_batch_cancel,
    "calls-batch-create": calls_batch_create,
    "calls-batch-events": calls_batch_events,
    "calls-batch-export": calls_batch_export,
    "calls-batch-get": calls_batch_get,
    "calls-batch-list": calls_batch_list,
    "calls-batch-import": calls_batch_import,
    "calls-batch-pause": calls_batch_pause,
    "calls-batch-process": calls_batch_process,
    "calls-batch-resume": calls_batch_resume,
    "calls-batch-retry": calls_batch_retry,
    "calls-batch-silence": calls_batch_silence,
    "calls-batch-skip": calls_batch_skip,
    "calls-hold": calls_hold,
    "calls-hold-lift": calls_hold_lift,
    "calls-hold-list": calls_hold_list,
    "calls-opt-out": calls_opt_out,
    "process-webhook-queue": process_webhook_queue,
    "webhook-ingest/{agency_id}": webhook_ingest,
    "webhook-ingest/{agency_id}/{webhook_secret:path}": webhook_ingest,  # base64, hence with slashes
}
ROUTES = [
    Route("/", root),
    *(Route(f"/functions/v1/{name}", function) for name, function in _EDGE_FUNCTIONS.items()),
    *(Route(f"/{name}", function) for name, function in _EDGE_FUNCTIONS.items()),
    Route("/api/call/start-calling", start_calling),
    Route("/api/call/stop-calling", stop_calling),
    Route("/api/call/batches/{user_id}", list_user_batches),
    Route("/api/call/batch-details/{id}", get_user_batch),
    Route("/health", health),
    Route("/openapi.yaml", openapi),
    Route("/docs", docs),
]


def create_app(settings: Settings) -> Starlette:
    """The service of these settings. Nothing is connected before the first request."""

    process = ProcessTelemetry(settings, settings.metrics_ports, "lastcall")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with process.running(app.state.database):
            yield
            if app.state.carrier is not None:
                await app.state.carrier.aclose()
            await app.state.database.close()

    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(RequestContext)],
        exception_handlers={404: not_found},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.settings = settings
    app.state.telemetry = process.telemetry
    app.state.verifier = TokenVerifier(settings, process.telemetry)
    app.state.database = connect_database(settings, process.telemetry)
    app.state.readers = anyio.CapacityLimiter(FILES_AT_ONCE)
    app.state.carrier = None  # made by the function that needs it
    return app


def __getattr__(name: str) -> Starlette:
    """`functions.app:app` for ASGI servers, from the environment, when it is asked for."""
    if name != "app":
        raise AttributeError(name)
    configure_logging()
    globals()["app"] = app = create_app(Settings.from_env(os.environ))
    return app
