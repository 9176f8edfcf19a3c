"""AWS Lambda: `functions.platforms.aws_lambda.handler` answers a function URL, or an API Gateway."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from mangum import Mangum

from .._shared.log import configure_logging
from .._shared.settings import Settings
from ..app import create_app


def make_handler(env: Mapping[str, str]) -> Mangum:
    """The handler of these settings. LASTCALL_BASE_PATH: what stands before the functions' paths, such as the
    stage of an API Gateway. Raises SettingsError."""
    configure_logging()
    # Its line for each request shows the path, in which a carrier's secret may stand.
    logging.getLogger("mangum").setLevel(logging.WARNING)
    # A sandbox has one request at a time.
    settings = Settings.from_env({"LASTCALL_POOL_SIZE": "1", **env})
    # A lifespan would begin and end with each invocation, and the database connection with it.
    return Mangum(create_app(settings), lifespan="off", api_gateway_base_path=env.get("LASTCALL_BASE_PATH") or "/")


handler = make_handler(os.environ)
