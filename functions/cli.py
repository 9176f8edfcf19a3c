"""The command `lastcall`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ._shared.settings import CARRIERS, MIN_SECRET_BYTES, Settings, SettingsError
from .local import STATE, CommandError, kept_secret, make_token

if TYPE_CHECKING:
    from .postgres_server import PostgresServer


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 the demo's verdict is no or a run of the dialer
    failed, 2 cannot run."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except CommandError as error:
        print(f"lastcall: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lastcall", description="Stops outbound call batches for certain.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="the functions over HTTP",
        description="Serve the functions at HOST and PORT (127.0.0.1:8787). Without DATABASE_URL and "
        "SUPABASE_URL, on an embedded PostgreSQL under .lastcall/. Prints 'ready http://...' when it answers.",
    )
    serve.set_defaults(run=_serve)

    migrate = commands.add_parser(
        "migrate",
        help="bring DATABASE_URL to this release",
        description="Apply the core to DATABASE_URL, which must be its owner's. Safe to run twice.",
    )
    migrate.set_defaults(run=_migrate)

    process = commands.add_parser(
        "process",
        help="dial what is to be dialed",
        description="Dial the batches of DATABASE_URL at the carrier of LASTCALL_CARRIER, and print what was done as "
        "JSON. Without DATABASE_URL and SUPABASE_URL: those of the embedded PostgreSQL under .lastcall/, which "
        "'lastcall serve' in the same folder may use at the same time. Safe to run beside other dialers. "
        "Exit status 1: the run failed, for one because the database did not answer.",
    )
    process.add_argument(
        "--loop",
        action="store_true",
        help="go on until SIGTERM or SIGINT; prints 'ready' when the database answers, and logs to stderr",
    )
    process.add_argument(
        "--max-calls", type=int, default=1000, metavar="N", help="most calls of one run, without --loop (default 1000)"
    )
    process.set_defaults(run=_process)

    token = commands.add_parser(
        "token",
        help="a development token",
        description="Print a JWT for a user, signed with SUPABASE_JWT_SECRET or, without one, with the "
        "secret of the embedded default.",
    )
    token.add_argument("--user", required=True, metavar="UUID", help="the user's id (claim sub)")
    token.add_argument(
        "--expires-in", type=int, default=3600, metavar="S", help="seconds until it expires (default 3600)"
    )
    token.set_defaults(run=_token)

    demo = commands.add_parser(
        "demo",
        help="cancel and stop two batches in mid-flight, and prove it",
        description="Dial a batch of contacts on the embedded PostgreSQL, cancel it over HTTP in mid-flight, "
        "stop another one, and verify that no call started afterwards. Exit status 1 if any did.",
    )
    demo.add_argument("--contacts", type=int, default=5000, metavar="N", help="contacts per batch (default 5000)")
    demo.add_argument("--keep", action="store_true", help="go on serving, and print curl commands to try")
    demo.set_defaults(run=_demo)
    return parser


def _serve(_options: argparse.Namespace) -> int:
    from ._shared.log import configure_logging
    from .server import serve

    env = dict(os.environ)
    listening = _listen(env)
    # As an exception, like SIGINT: what was started is stopped again.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as started:
        if not env.get("DATABASE_URL") and not env.get("SUPABASE_URL"):
            env["DATABASE_URL"] = _start_postgres(started)
            env["SUPABASE_JWT_SECRET"] = env.get("SUPABASE_JWT_SECRET") or kept_secret()
        settings = _settings(env)
        configure_logging()
        serve(settings, listening)
    return 0


def _process(options: argparse.Namespace) -> int:
    import asyncio

    from ._shared.log import configure_logging
    from .dialer.service import dial_once, dial_until_stopped

    if options.max_calls < 1:
        raise CommandError("--max-calls must be at least 1")
    env = dict(os.environ)
    if not env.get("LASTCALL_CARRIER"):
        raise CommandError(f"set LASTCALL_CARRIER to who places the calls: {', '.join(CARRIERS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as started:
        if not env.get("DATABASE_URL") and not env.get("SUPABASE_URL"):
            env["DATABASE_URL"] = _start_postgres(started)
        settings = _settings(env, serving=False)
        configure_logging()
        if options.loop:
            return asyncio.run(dial_until_stopped(settings))
        return asyncio.run(dial_once(settings, options.max_calls))


def _start_postgres(started: contextlib.ExitStack) -> str:
    """Start the embedded PostgreSQL, or join it; its URL for the functions. The stack leaves it."""
    from .postgres_server import PostgresServerError, embedded_postgres

    try:
        server = embedded_postgres(STATE / "postgres")
    except PostgresServerError as error:
        raise CommandError(str(error)) from None
    started.callback(server.stop)
    _start(server)
    return server.uri(user="authenticator")


def _start(server: PostgresServer) -> None:
    import psycopg

    from .migrations import migrate
    from .postgres_server import PostgresServerError

    try:
        server.start()
        migrate(server.uri())
    except (PostgresServerError, OSError, psycopg.Error) as error:
        raise CommandError(f"no embedded PostgreSQL in {STATE / 'postgres'}: {error}") from None


def _listen(env: Mapping[str, str]) -> socket.socket:
    """Take the address before anything is started for it."""
    host, port = env.get("HOST") or "127.0.0.1", env.get("PORT") or "8787"
    if not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise CommandError("PORT must be a whole number from 0 to 65535")
    try:
        listening = socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CommandError(f"cannot listen on {host}:{port}: {reason}; set another HOST or PORT") from None
    # Connections inherit it; asyncio sets it only where the socket names its protocol. Without it a reply,
    # written as head and body, waits some 40 ms for the client's delayed acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _settings(env: Mapping[str, str], *, serving: bool = True) -> Settings:
    try:
        return Settings.from_env(env, serving=serving)
    except SettingsError as error:
        raise CommandError(str(error)) from None


def _migrate(_options: argparse.Namespace) -> int:
    import psycopg

    from .migrations import migrate

    url = os.environ.get("DATABASE_URL")
    if not url:
        raise CommandError("set DATABASE_URL to the database to migrate")
    try:
        applied = migrate(url)
    except psycopg.Error as error:
        raise CommandError(f"migration failed: {error}") from None
    for name in applied:
        print(f"applied {name}")
    print("up to date")
    return 0


def _token(options: argparse.Namespace) -> int:
    from uuid import UUID

    try:
        user = UUID(options.user)
    except ValueError:
        raise CommandError("--user must be a UUID") from None
    secret = os.environ.get("SUPABASE_JWT_SECRET") or kept_secret()
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise CommandError(f"SUPABASE_JWT_SECRET must have at least {MIN_SECRET_BYTES} bytes")
    print(make_token(secret, user=str(user), expires_in=options.expires_in, env=os.environ))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from .demo import run

    return run(options.contacts, keep=options.keep)
