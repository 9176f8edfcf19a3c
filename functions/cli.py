"""The command `lastcall`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ._shared.settings import CARRIERS, MIN_SECRET_BYTES, Settings, SettingsError
from ._shared.status import BatchStatus, ContactStatus
from .local import STATE, CommandError, kept_secret, make_token, printable

if TYPE_CHECKING:
    from .postgres_server import PostgresServer


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 refused or failed, or the verdict of demo or prove is no,
    2 cannot run, 3 the service is out of reach, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except CommandError as error:
        message = printable(str(error))
        as_json = json.dumps({"error": message, "code": error.code}) if getattr(options, "json", False) else None
        print(as_json or f"lastcall: {message}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has enough of it. Nothing is left to be written at the end, which would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lastcall", description="Stops outbound call batches for certain.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="serve the functions over HTTP",
        description="Serve the functions at HOST and PORT (127.0.0.1:8787). Without DATABASE_URL and "
        "SUPABASE_URL, on an embedded PostgreSQL under .lastcall/. Prints 'ready http://...' when it answers.",
    )
    serve.add_argument(
        "--sample",
        action="store_true",
        help="offer a sample agency with a batch, made anew at each start, and print a token and commands to try; "
        "on the embedded PostgreSQL",
    )
    serve.set_defaults(run=_serve)

    psql = commands.add_parser(
        "psql",
        help="open psql on the embedded PostgreSQL",
        description="Open psql on the embedded PostgreSQL under .lastcall/, which 'lastcall serve' in the same folder "
        "may use at the same time. All arguments are psql's.",
        prefix_chars="\0",  # its options are psql's
        add_help=False,
    )
    psql.add_argument("arguments", nargs=argparse.REMAINDER)
    psql.set_defaults(run=_psql)

    migrate = commands.add_parser(
        "migrate",
        help="bring DATABASE_URL to this release",
        description="Apply the core to DATABASE_URL, which must be its owner's. Safe to run twice. It creates the role "
        "lastcall_functions, which the functions log in as, without a password: give it one by psql's "
        "'\\password lastcall_functions'.",
    )
    migrate.set_defaults(run=_migrate)

    process = commands.add_parser(
        "process",
        help="dial the batches that are due",
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
        help="print a development token",
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
        help="pause, cancel and stop batches in mid-flight, and prove it",
        description="Create and dial two batches of contacts on the embedded PostgreSQL; in mid-flight, over HTTP, "
        "pause, resume and cancel one and stop the other; verify by the carrier's record that the batches fell silent "
        "as promised, and that every call and contact is accounted for. Exit status 1 if not.",
    )
    demo.add_argument("--contacts", type=int, default=5000, metavar="N", help="contacts per batch (default 5000)")
    demo.add_argument("--keep", action="store_true", help="go on serving, and print curl commands to try")
    demo.set_defaults(run=_demo)

    prove = commands.add_parser(
        "prove",
        help="race dialers against cancels, stops and holds on your database, and judge",
        description="Dial batches at a simulated carrier, end calls of every scope at random meanwhile, and freeze and "
        "kill dialers. The carrier's record, the record of the replies and a dump of the contacts are written into a "
        "folder; a checker that reads these alone gives the verdict. On DATABASE_URL, of the core's owner or the "
        "service, in which nothing else is dialed; or without one, on an embedded PostgreSQL under .lastcall/. The "
        "race adds agencies named 'lastcall prove ...', and removes them at the end. No real call is placed. "
        "The promised time is LASTCALL_PLACE_WITHIN_MS.",
        epilog="Exit status: 0 PASS; 1 FAIL; 2 cannot run; 130 interrupted. "
        "Check the records yourself: python -m functions.prove.checker FOLDER",
    )
    prove.add_argument(
        "--seconds", type=_seconds, default=40.0, metavar="S", help="length of the race in seconds (default 40)"
    )
    prove.add_argument("--contacts", type=int, default=400, metavar="N", help="contacts per batch (default 400)")
    prove.add_argument("--dialers", type=int, default=3, metavar="N", help="number of dialers (default 3)")
    prove.add_argument(
        "--seed", type=int, metavar="N", help="seed of the random choices (default: a random seed, printed)"
    )
    prove.add_argument(
        "--way",
        choices=("core", "edge"),
        default="core",
        help="core, or edge: the usual edge functions in the place of the core, which fail (default core)",
    )
    prove.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the records (default: a temporary folder)")
    prove.add_argument("--keep", action="store_true", help="leave the agencies of the race in the database")
    prove.set_defaults(run=_prove)

    _add_operator(commands)
    return parser


_EXIT_STATUS = "Exit status: 0 done; 1 refused or failed; 2 cannot run; 3 out of reach; 130 interrupted."


def _add_operator(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The operator's commands: see functions/operator."""
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print JSON, for programs; errors too, on stderr")
    service = argparse.ArgumentParser(add_help=False, parents=[output])
    service.add_argument(
        "--sql", action="store_true", help="use the SQL console at DATABASE_URL, as a member of lastcall_admin"
    )
    batch = argparse.ArgumentParser(add_help=False, parents=[service])
    batch.add_argument(
        "id",
        metavar="ID",
        help="UUID or external id; for the newest 500 batches also the first 6 characters of the UUID",
    )
    repeatable = argparse.ArgumentParser(add_help=False)
    repeatable.add_argument(
        "--idempotency-key", metavar="KEY", help="name the request: a repeat under the same key is done once"
    )
    change = argparse.ArgumentParser(add_help=False, parents=[batch, repeatable])
    change.add_argument("--reason", metavar="TEXT", help="reason, kept in the audit trail")

    def add(name: str, help_: str, parent: argparse.ArgumentParser, more: str = "") -> argparse.ArgumentParser:
        description = f"{help_[0].upper()}{help_[1:]}. {more}"
        command = commands.add_parser(
            name, help=help_, description=description.strip(), epilog=_EXIT_STATUS, parents=[parent]
        )
        command.set_defaults(run=_operator, operation=name)
        return command

    batches = add("batches", "list batches, newest first", service)
    batches.add_argument(
        "--status", choices=get_args(BatchStatus), metavar="STATUS", help="only batches with this status: %(choices)s"
    )
    amount = batches.add_mutually_exclusive_group()
    amount.add_argument("--limit", type=_whole_number, default=25, metavar="N", help="list at most N (default 25)")
    amount.add_argument("--all", action="store_true", help="list all")
    add("show", "show a batch, its settings and its calls in progress", batch)
    watch = add("watch", "watch a batch until it is over and its calls have ended", batch, "Ends with Ctrl-C, too.")
    watch.add_argument("--interval", type=_seconds, default=1.0, metavar="S", help="seconds between looks (default 1)")
    add("events", "show the audit trail of a batch", batch)
    cancel = add(
        "cancel",
        "cancel a batch for good: contacts not yet called are skipped",
        change,
        "Asks first. Repeats the request when the reply is lost, so that what it says is certain.",
    )
    stop = add("stop", "stop a batch: its call queue is emptied; it can be resumed", change)
    stop.add_argument(
        "--skip-remaining", action="store_true", help="skip contacts not yet called, for good; asks first"
    )
    for ending in (cancel, stop):
        ending.add_argument(
            "--end-calls", action="store_true", help="let the carrier hang up the calls in progress; asks first"
        )
        ending.add_argument("-y", "--yes", action="store_true", help="do not ask")
    add("pause", "pause a batch: it keeps its place", change)
    add("resume", "go on with a paused or stopped batch", change)
    retry = add("retry", "dial the failed contacts of a batch again, as a new batch", change)
    retry.add_argument(
        "--outcome", action="append", metavar="OUTCOME", help="only contacts whose last call ended so; may be repeated"
    )
    retry.add_argument("--scheduled-for", metavar="TIME", help="ISO 8601 with a time zone (default: at once)")
    skip = add(
        "skip",
        "skip some contacts of a batch for good: those that all options name",
        change,
        "Asks first, with the number of contacts and calls. A call in progress to such a contact is the last.",
    )
    skip.add_argument("--contact", action="append", metavar="ID", help="a contact's id; may be repeated")
    skip.add_argument(
        "--status",
        action="append",
        choices=("pending", "scheduled", "queued", "in_progress"),
        metavar="STATUS",
        help="only these: %(choices)s; may be repeated",
    )
    skip.add_argument("--min-attempts", type=_count, metavar="N", help="only contacts with at least so many attempts")
    skip.add_argument("--max-attempts", type=_count, metavar="N", help="only contacts with at most so many attempts")
    skip.add_argument(
        "--where",
        action="append",
        type=_column,
        metavar="COLUMN=VALUE",
        help="only contacts with this value in this column; may be repeated",
    )
    opt_out = add(
        "opt-out",
        "never call a number again: in no batch, and on the do-not-call list",
        argparse.ArgumentParser(add_help=False, parents=[service]),
    )
    opt_out.add_argument("number", metavar="NUMBER", help="E.164, such as +14155550123")
    opt_out.add_argument("--source", metavar="TEXT", help="where the person said no")
    opt_out.add_argument("--reason", metavar="TEXT", help="reason, kept on the do-not-call list and in the audit trail")
    hold = add(
        "hold",
        "hold the calls of a campaign, an agent, a caller number or an agency until the hold is lifted",
        argparse.ArgumentParser(add_help=False, parents=[service, repeatable]),
        "Asks first, with the number of batches and calls. The hold reaches batches that begin or resume later, too.",
    )
    scope = hold.add_mutually_exclusive_group(required=True)
    scope.add_argument("--campaign", dest="campaign_id", metavar="UUID", help="the batches of a campaign")
    scope.add_argument("--agent", dest="agent_mapping_id", metavar="UUID", help="the batches of an agent")
    scope.add_argument("--from", dest="from_number", metavar="NUMBER", help="the batches that call from a number")
    scope.add_argument("--whole-agency", action="store_true", help="the batches of the agency")
    scope.add_argument("--everything", action="store_true", help="the batches of every agency; with --sql")
    hold.add_argument("--until", metavar="TIME", help="ISO 8601 with a time zone (default: until it is lifted)")
    hold.add_argument("--reason", metavar="TEXT", help="reason, kept with the hold")
    for scoped in (opt_out, hold):
        scoped.add_argument("--agency", metavar="UUID", help="the agency; with --sql")
    for asking in (skip, hold):
        asking.add_argument("--dry-run", action="store_true", help="count, and change nothing")
        asking.add_argument("-y", "--yes", action="store_true", help="do not ask")
    lift = add(
        "lift",
        "lift a hold: its batches go on as they were",
        argparse.ArgumentParser(add_help=False, parents=[service]),
    )
    lift.add_argument("id", metavar="ID", help="UUID of the hold; for an active hold also the first 6 characters")
    lift.add_argument("--reason", metavar="TEXT", help="kept with the hold")
    holds = add("holds", "list the holds, newest first", service)
    holds.add_argument("--all", action="store_true", help="list lifted and ended holds, too")
    imported = add(
        "import",
        "import contacts from a .csv or .xlsx file into a batch",
        argparse.ArgumentParser(add_help=False, parents=[service, repeatable]),
        "Into --batch, or into a new batch of --agent, --from and --campaign. An import that broke off goes on when "
        "the same file is imported into the same batch again.",
    )
    imported.add_argument(
        "file", type=Path, metavar="FILE", help="file with a header row that names a column phone_number"
    )
    imported.add_argument("--batch", metavar="ID", help="existing batch: UUID or external id")
    imported.add_argument(
        "--agent", dest="agent_mapping_id", metavar="UUID", help="agent of the new batch (agent_mapping_id)"
    )
    imported.add_argument(
        "--from", dest="from_number", metavar="NUMBER", help="caller number of the new batch, active in the agency"
    )
    imported.add_argument("--campaign", dest="campaign_id", metavar="UUID", help="campaign of the new batch")
    imported.add_argument("--name", metavar="TEXT", help="name of the new batch")
    imported.add_argument("--external-id", metavar="ID", help="id of the new batch in another system")
    imported.add_argument("--scheduled-for", metavar="TIME", help="ISO 8601 with a time zone (default: at once)")
    imported.add_argument("--timezone", metavar="ZONE", help="such as Europe/Paris")
    imported.add_argument("--calls-per-minute", type=int, metavar="N", help="1 to 60 (default 30)")
    imported.add_argument("--max-concurrent", type=int, metavar="N", help="1 to 100 (default 10)")
    imported.add_argument("--strict", action="store_true", help="import all rows or none")
    imported.add_argument("--errors", type=Path, metavar="FILE", help="write the invalid rows as CSV")
    export = add("export", "write a batch's contacts and their results as CSV", batch)
    export.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write, whole or not at all, readable by its owner (default: stdout)",
    )
    export.add_argument("--status", choices=get_args(ContactStatus), metavar="STATUS", help="only these: %(choices)s")
    login = add(
        "login",
        "log in to a Supabase project, or with --token where the app serves the functions",
        output,
        "Asks for email and password, or for the token; what is piped in is taken as the password or token. "
        "Kept in ~/.config/lastcall/session.json (XDG_CONFIG_HOME), for its owner alone. "
        "LASTCALL_TOKEN, when set, counts instead.",
    )
    login.add_argument("--url", help="address of the project (SUPABASE_URL); with --token of the app (LASTCALL_URL)")
    login.add_argument("--key", help="the project's publishable key (SUPABASE_PUBLISHABLE_KEY)")
    login.add_argument("--email", help="e-mail address of the login; the password is asked for")
    login.add_argument("--token", action="store_true", help="ask for a token instead")
    add("logout", "forget who is logged in", output)


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number from 1 on")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError("must be a whole number from 0 on")
    return int(text)


def _column(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError("must be COLUMN=VALUE")
    return name, value


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("must be 0.1 to 3600")
    return seconds


def _operator(options: argparse.Namespace) -> int:
    from .operator.commands import run

    return run(options)


def _serve(options: argparse.Namespace) -> int:
    from ._shared.log import configure_logging
    from .server import serve

    env = dict(os.environ)
    is_embedded = not env.get("DATABASE_URL") and not env.get("SUPABASE_URL")
    if options.sample and not is_embedded:
        raise CommandError("--sample is for the embedded PostgreSQL: unset DATABASE_URL and SUPABASE_URL")
    listening = _listen(env)
    # As an exception, like SIGINT: what was started is stopped again.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    greeting = None
    with contextlib.ExitStack() as started:
        if is_embedded:
            server = _start_postgres(started)
            env["DATABASE_URL"] = server.uri(user="lastcall_functions")
            env["SUPABASE_JWT_SECRET"] = env.get("SUPABASE_JWT_SECRET") or kept_secret()
            if options.sample:
                greeting = _sample(server, env)
        settings = _settings(env)
        configure_logging()
        serve(settings, listening, greeting)
    return 0


def _sample(server: PostgresServer, env: Mapping[str, str]) -> Callable[[str], str]:
    import psycopg

    from .sample import OWNER, TOKEN_LASTS_S, commands, load_sample

    try:
        load_sample(server.uri())
    except psycopg.Error as error:
        raise CommandError(f"no sample: {error}") from None
    token = make_token(env["SUPABASE_JWT_SECRET"], user=OWNER, expires_in=TOKEN_LASTS_S, env=env)
    return lambda url: commands(url, token)


def _psql(options: argparse.Namespace) -> int:
    import subprocess

    with contextlib.ExitStack() as started:
        server = _start_postgres(started)
        # Ctrl-C is psql's: it ends the statement, not psql.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return subprocess.call([server.bin_folder / "psql", server.uri(), *options.arguments])


def _process(options: argparse.Namespace) -> int:
    import asyncio

    from ._shared.log import configure_logging
    from .dialer.service import dial_once, dial_until_stopped

    if options.max_calls < 1:
        raise CommandError("--max-calls must be at least 1")
    env = dict(os.environ)
    if not env.get("LASTCALL_CARRIER"):
        raise CommandError(f"set LASTCALL_CARRIER to the carrier that places the calls: {', '.join(CARRIERS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as started:
        if not env.get("DATABASE_URL") and not env.get("SUPABASE_URL"):
            env["DATABASE_URL"] = _start_postgres(started).uri(user="lastcall_functions")
        settings = _settings(env, serving=False)
        configure_logging()
        if not options.loop:
            return asyncio.run(dial_once(settings, options.max_calls))
        try:
            return asyncio.run(dial_until_stopped(settings))
        except SettingsError as error:
            raise CommandError(str(error)) from None


def _start_postgres(started: contextlib.ExitStack) -> PostgresServer:
    """Start the embedded PostgreSQL, or join it. The stack leaves it."""
    from .postgres_server import PostgresServerError, embedded_postgres

    try:
        server = embedded_postgres(STATE / "postgres")
    except PostgresServerError as error:
        raise CommandError(str(error)) from None
    started.callback(server.stop)
    _start(server)
    return server


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
        applied = migrate(url, warn=lambda warning: print(f"lastcall: warning: {printable(warning)}", file=sys.stderr))
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


def _prove(options: argparse.Namespace) -> int:
    from .prove import Plan, run

    return run(
        Plan(
            seconds=options.seconds,
            contacts=options.contacts,
            dialers=options.dialers,
            seed=options.seed,
            way=options.way,
            out=options.out,
            keep=options.keep,
        )
    )
