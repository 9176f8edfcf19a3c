"""A stand-in for Azure's host and worker: python -m tests.support.platforms.azure_host FOLDER PORT

Loads the folder's function_app.py, finds its HTTP function as the worker does, and calls it with an HttpRequest for
each request, all in one event loop. An exception is a 500 without a body.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import azure.functions as func
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def main(folder: Path, port: int) -> None:
    sys.path.insert(0, str(folder))
    (function,) = importlib.import_module("function_app").app.get_functions()
    (trigger,) = [binding for binding in function.get_bindings() if binding.type == "httpTrigger"]
    assert trigger.auth_level is func.AuthLevel.ANONYMOUS
    assert trigger.methods is None  # any
    prefix = json.loads((folder / "host.json").read_text())["extensions"]["http"]["routePrefix"]
    path = f"/{prefix}/{trigger.route}".replace("//", "/").replace("{*path}", "{path:path}")
    answer = function.get_user_function()

    async def endpoint(request: Request) -> Response:
        try:
            response = await answer(await http_request(request), None)
        except Exception:
            return Response(status_code=500)
        return Response(response.get_body(), response.status_code, dict(response.headers.items()))

    every = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    app = Starlette(routes=[Route(path, endpoint, methods=every)])
    uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, access_log=False)


async def http_request(request: Request) -> Any:
    """The request as the worker gives it to a function."""
    return func.HttpRequest(
        method=request.method,
        url=str(request.url),
        headers=dict(request.headers.items()),
        params=dict(request.query_params),
        route_params=dict(request.path_params),
        body=await request.body(),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
