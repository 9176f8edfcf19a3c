"""The platforms of functions/platforms, each with its own runtime in a process of its own and plain HTTP in front.

Real are the entry point, the platform's packages and what they start. A stand-in is what only the platform has:
what turns HTTP into events (lambda_service, azure_host), and who is told that the runtime is ready (vercel).
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..command import environment
from ..ports import reserved_port
from ..serving import serving
from .lambda_service import LambdaService

REPOSITORY = Path(__file__).parents[3]
FOLDERS = REPOSITORY / "functions" / "platforms"


@contextmanager
def aws_lambda(settings: dict[str, str], log: Path) -> Iterator[str]:
    """A sandbox behind a function URL, by AWS's own runtime client."""
    service = LambdaService()
    with serving(service.app()) as (host, port):
        runtime = {"AWS_LAMBDA_RUNTIME_API": f"{host}:{port}", "AWS_LAMBDA_FUNCTION_NAME": "lastcall"}
        command = [sys.executable, "-m", "awslambdaric", "functions.platforms.aws_lambda.handler"]
        with _process(command, {**settings, **runtime}, log) as process:
            _until_ready(process, log, service.polled)
            try:
                yield f"http://{host}:{port}"
            finally:
                process.kill()  # as Lambda ends a sandbox
                service.stop()


@contextmanager
def azure(settings: dict[str, str], log: Path) -> Iterator[str]:
    """A function app."""
    command = [sys.executable, "-m", "tests.support.platforms.azure_host", str(FOLDERS / "azure")]
    with reserved_port() as port, _process([*command, str(port)], settings, log) as process:
        _until_ready(process, log, lambda: _accepts(port))
        yield f"http://127.0.0.1:{port}"


@contextmanager
def google(settings: dict[str, str], log: Path) -> Iterator[str]:
    """A function, by the command that Google's buildpack starts."""
    command = [str(Path(sys.executable).parent / "functions-framework"), "--target", "lastcall"]
    with reserved_port() as port:
        address = {"HOST": "127.0.0.1", "PORT": str(port)}
        with _process(command, {**settings, **address}, log, FOLDERS / "google") as process:
            _until_ready(process, log, lambda: _accepts(port))
            yield f"http://127.0.0.1:{port}"


@contextmanager
def vercel(settings: dict[str, str], log: Path) -> Iterator[str]:
    """A function, started as Vercel's builder does it by what pyproject.toml says."""
    if importlib.util.find_spec("vercel_runtime") is None:
        pytest.skip("vercel-runtime needs Python 3.12")
    entry = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["vercel"]["entrypoint"]
    module, variable = entry.split(":")
    path = f"{module.replace('.', '/')}.py"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(log.with_suffix(".sock")))
        listening.listen()
        handler = {
            "__VC_HANDLER_MODULE_NAME": module,
            "__VC_HANDLER_ENTRYPOINT": path,
            "__VC_HANDLER_ENTRYPOINT_ABS": str(REPOSITORY / path),
            "__VC_HANDLER_VENDOR_DIR": "_vendor",
            "__VC_HANDLER_VARIABLE_NAME": variable,
            "VERCEL_IPC_PATH": listening.getsockname(),
        }
        command = [sys.executable, "-c", "from vercel_runtime.vc_init import vc_handler"]
        with _process(command, {**settings, **handler}, log) as process:
            listening.settimeout(60)
            told, _ = listening.accept()
            messages = _messages(told)
            started = next(messages)
            assert started["type"] == "server-started", started
            logging = threading.Thread(target=_write_log, args=(messages, log))
            logging.start()
            try:
                yield f"http://127.0.0.1:{started['payload']['httpPort']}"
            finally:
                process.terminate()
                logging.join()
                told.close()


def _messages(told: socket.socket) -> Iterator[dict[str, Any]]:
    """The messages of the runtime to Vercel, until it ends."""
    rest = b""
    while data := told.recv(65_536):
        *whole, rest = (rest + data).split(b"\0")
        yield from map(json.loads, whole)


def _write_log(messages: Iterator[dict[str, Any]], log: Path) -> None:
    for message in messages:
        if message["type"] == "log":
            with log.open("ab") as file:
                file.write(base64.b64decode(message["payload"]["message"]))


PLATFORMS = {"lambda": aws_lambda, "azure": azure, "google": google, "vercel": vercel}


@contextmanager
def _process(
    command: list[str], settings: dict[str, str], log: Path, folder: Path = REPOSITORY
) -> Iterator[subprocess.Popen[str]]:
    with (
        log.open("a") as output,
        subprocess.Popen(
            command, cwd=folder, env=environment(**settings), stdout=output, stderr=output, text=True
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _until_ready(process: subprocess.Popen[str], log: Path, ready: Callable[[], object]) -> None:
    while not ready():
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(0.05)
            raise AssertionError(f"ended with {status}: {log.read_text()}")


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
