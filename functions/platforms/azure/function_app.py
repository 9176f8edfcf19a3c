"""Azure Functions: one HTTP function for every path; host.json takes the prefix /api away."""

from __future__ import annotations

import azure.functions as func

from functions.app import app as lastcall

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)  # the functions verify tokens themselves
# Not AsgiFunctionApp: its end runs in another event loop than the app did, where the pool cannot be closed.
_middleware = func.AsgiMiddleware(lastcall)  # type: ignore[no-untyped-call]


@app.function_name("lastcall")
@app.route("{*path}")
async def answer(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    """Any request, by whatever method."""
    response: func.HttpResponse = await _middleware.handle_async(req, context)
    return response
