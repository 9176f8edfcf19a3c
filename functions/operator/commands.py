"""The operator's commands, one function each. They ask the service, which decides, and show its answer."""

from __future__ import annotations

import argparse
import contextlib
import functools
import getpass
import itertools
import os
import re
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from .._shared.contacts_csv import ERRORS_HEADER, error_lines
from ..local import CommandError
from . import display
from .client import Client, HttpClient, RefusedError, SqlClient
from .session import (
    NotLoggedInError,
    OutOfReachError,
    Session,
    current_session,
    keep_token,
    service_url,
    sign_in,
    sign_out,
)
from .watching import Speedometer

T = TypeVar("T")
Batch = dict[str, Any]

OVER = ("completed", "failed", "cancelled")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_PREFIX = re.compile(r"[0-9a-f][0-9a-f-]{5,}", re.IGNORECASE)
_RECENT_BATCHES = 500
_PAGE = 100
# Between repeats of a request whose outcome is not known: about 15 seconds in all.
_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_MAX_WAIT_S = 10.0
_ENDING = "no further call starts, calls in progress end by themselves"
_ENDING_CALLS = "no further call starts, the carrier hangs up the calls in progress"


def run(options: argparse.Namespace) -> int:
    """Run the command that options.operation names. Returns the exit status; raises CommandError."""
    command: Callable[[argparse.Namespace], None] = COMMANDS[options.operation]
    command(options)
    return 0


# To see.


def batches(options: argparse.Namespace) -> None:
    with _connected(options) as client:
        size = _PAGE if options.all else min(_PAGE, options.limit)
        found: list[Batch] = []
        for page in _pages(lambda after: client.list_batches(status=options.status, limit=size, after=after)):
            found += page["batches"]
            if not options.all and len(found) >= options.limit:
                del found[options.limit :]
                break
        total = page["pagination"]["total"]
    if options.json:
        display.write_json({"batches": found, "total": total})
        return
    # Eight characters and the minute are enough for a person; a program gets them all.
    is_terminal = display.is_terminal()
    display.write_table(
        ["ID", "NAME", "STATUS", "WAITING FOR", "DONE %", "CONTACTS", "TO CALL", "LIVE", "COMPLETED", "FAILED",
         "SKIPPED", "CREATED"],
        [
            (
                batch["id"][:8] if is_terminal else batch["id"],
                batch["name"] or batch["external_id"],
                batch["status"],
                batch["waiting_for"],
                batch["progress_percentage"],
                batch["total_contacts"],
                _to_call(batch),
                batch["in_progress"],
                batch["completed"],
                batch["failed"],
                batch["skipped"],
                f"{batch['created_at'][:16]}Z" if is_terminal else batch["created_at"],
            )
            for batch in found
        ],
    )  # fmt: skip
    if len(found) < total:
        display.note(f"{len(found):,} of {total:,} batches; --all shows all")


def show(options: argparse.Namespace) -> None:
    with _connected(options) as client:
        found = _get(client, _find(client, options.id))
    if options.json:
        display.write_json({"batch": found["batch"], "live_calls": found["live_calls"]})
        return
    batch = found["batch"]
    rows = [(name.replace("_", " "), value) for name, value in batch.items() if value is not None]
    display.write_table(["BATCH", ""], rows)
    if found["live_calls"]:
        display.say("")
        display.write_table(
            ["LIVE CALL", "NUMBER", "STATUS", "STARTED", "CARRIER'S ID"],
            [
                (call["call_id"], call["phone_number"], call["status"], call["started_at"], call["carrier_call_id"])
                for call in found["live_calls"]
            ],
        )


def watch(options: argparse.Namespace) -> None:
    speed = Speedometer()
    with _connected(options) as client:
        batch_id = _find(client, options.id)
        with contextlib.nullcontext() if options.json else display.ProgressDisplay() as shown:
            while True:
                # A watch outlasts a restart of the service.
                batch = _retry_until_known(lambda: client.get_batch(batch_id)["batch"], patient=True)
                progress = speed.look(batch, time.monotonic())
                if shown is None:
                    rate = {"finished_per_minute": progress.finished_per_minute, "eta_seconds": progress.eta_seconds}
                    display.write_json({**batch, **rate})
                else:
                    shown.show(progress)
                if batch["status"] in OVER and not batch["in_progress"]:
                    return
                time.sleep(options.interval)


def events(options: argparse.Namespace) -> None:
    with _connected(options) as client:
        batch_id = _find(client, options.id)
        pages = _pages(lambda after: client.list_events(batch_id, after=after))
        found = [event for page in pages for event in page["events"]]
    if options.json:
        display.write_json({"events": found})
        return
    display.write_table(
        ["TIME", "ACTION", "BY", "FROM", "TO", "CONTACTS", "REASON", "REQUEST"],
        [
            (
                event["created_at"],
                event["action"],
                event["actor_id"] or f"{event['actor_kind']} {event['actor_role']}",
                event["from_status"],
                event["to_status"],
                event["contacts"],
                event["reason"],
                event["request_id"],
            )
            for event in found
        ],
    )


def holds(options: argparse.Namespace) -> None:
    with _connected(options) as client:
        found = _retry_until_known(lambda: client.list_holds(include_lifted=options.all))["holds"]
    if options.json:
        display.write_json({"holds": found})
        return
    is_terminal = display.is_terminal()
    display.write_table(
        ["ID", "SCOPE", "OF", "BATCHES", "UNTIL", "SINCE", "LIFTED", "REASON"],
        [
            (
                hold["id"][:8] if is_terminal else hold["id"],
                hold["scope"],
                hold["campaign_name"] or hold["agent_name"] or hold["from_number"] or hold["agency_id"],
                hold["batches"],
                hold["until"],
                hold["created_at"],
                hold["lifted_at"],
                hold["reason"],
            )
            for hold in found
        ],
    )


# To change.


def cancel(options: argparse.Namespace) -> None:
    with _connected(options) as client:
        batch_id = _find(client, options.id)
        _confirm_end(options, client, batch_id, "Cancel")
        given = {"end_calls": options.end_calls, "reason": options.reason}
        answer = _send_change(options, lambda key: client.change("cancel_batch", batch_id=batch_id, key=key, **given))
    skipped = f"{answer['contacts_skipped']:,} contacts skipped"
    ending = _ENDING_CALLS if options.end_calls else _ENDING
    _report(options, answer, f"Batch {batch_id} is cancelled: {skipped}, {ending}.")


def stop(options: argparse.Namespace) -> None:
    with _connected(options) as client:
        batch_id = _find(client, options.id)
        if options.skip_remaining or options.end_calls:
            _confirm_end(options, client, batch_id, "Stop")
        given = {name: getattr(options, name) for name in ("skip_remaining", "end_calls", "reason")}
        answer = _send_change(options, lambda key: client.stop(batch_id, key=key, **given))
    rest = "the remaining contacts are skipped" if options.skip_remaining else "it can be resumed"
    ending = _ENDING_CALLS if options.end_calls else _ENDING
    _report(options, answer, f"Batch {batch_id} is stopped: {ending}; {rest}.")


def pause(options: argparse.Namespace) -> None:
    with _connected(options) as client:
        batch_id = _find(client, options.id)
        given = {"batch_id": batch_id, "reason": options.reason}
        answer = _send_change(options, lambda key: client.change("pause_batch", key=key, **given))
    _report(options, answer, f"Batch {batch_id} is paused: {_ENDING}.")


def resume(options: argparse.Namespace) -> None:
    with _connected(options) as client:
        batch_id = _find(client, options.id)
        given = {"batch_id": batch_id, "reason": options.reason}
        answer = _send_change(options, lambda key: client.change("resume_batch", key=key, **given))
    _report(options, answer, f"Batch {batch_id} is {answer['status']}. {answer['message']}")


def retry(options: argparse.Namespace) -> None:
    given = {"outcomes": options.outcome, "scheduled_for": options.scheduled_for, "reason": options.reason}
    with _connected(options) as client:
        batch_id = _find(client, options.id)
        answer = _send_change(options, lambda key: client.change("retry_batch", batch_id=batch_id, key=key, **given))
    dials = f"dials {answer['total_contacts']:,} failed contacts of {batch_id} again"
    left_out = f"{answer['do_not_call']:,} are not to be called any more"
    _report(options, answer, f"Batch {answer['batch_id']}, {answer['status']}, {dials}; {left_out}.")


def skip(options: argparse.Namespace) -> None:
    chosen = {
        "status": options.status,
        "min_attempts": options.min_attempts,
        "max_attempts": options.max_attempts,
        "custom_data": dict(options.where) if options.where else None,
    }
    filter_ = {name: value for name, value in chosen.items() if value is not None}
    with _connected(options) as client:
        batch_id = _find(client, options.id)
        given = {"batch_id": batch_id, "contact_ids": options.contact, "filter": filter_ or None}
        if options.dry_run:
            answer = _retry_until_known(lambda: client.change("skip_contacts", dry_run=True, **given))
            return _report(options, answer, f"{_reach(answer)} of batch {batch_id} would be skipped.")
        if _must_ask(options, "skip"):
            count = _retry_until_known(lambda: client.change("skip_contacts", dry_run=True, **given))
            _agree(f"Skip {_reach(count)} of batch {batch_id} for good? [y/N] ")
        given["reason"] = options.reason
        answer = _send_change(options, lambda key: client.change("skip_contacts", key=key, **given))
    return _report(
        options, answer, f"Batch {batch_id}: {_reach(answer)} skipped; their calls in progress are the last."
    )


def opt_out(options: argparse.Namespace) -> None:
    given = {
        "phone_number": options.number, "source": options.source, "reason": options.reason, "agency_id": options.agency,
    }  # fmt: skip
    with _connected(options) as client:
        _only_at_the_console(options, "agency")
        answer = _send_change(options, lambda _key: client.change("opt_out", **given))
    listed = "is on the do-not-call list" if answer["added"] else "was on the do-not-call list"
    _report(options, answer, f"{options.number} {listed}: {_reach(answer)} skipped, in {answer['batches']:,} batches.")


def hold(options: argparse.Namespace) -> None:
    scopes = ("campaign_id", "agent_mapping_id", "from_number", "whole_agency", "everything")
    given = {name: getattr(options, name) or None for name in scopes}
    given |= {"agency_id": options.agency, "until": options.until}
    with _connected(options) as client:
        _only_at_the_console(options, "agency", "everything")
        if options.dry_run:
            answer = _retry_until_known(lambda: client.change("hold_calls", dry_run=True, **given))
            return _report(options, answer, f"The hold would reach {_held(answer)}.")
        if _must_ask(options, "hold"):
            count = _retry_until_known(lambda: client.change("hold_calls", dry_run=True, **given))
            _agree(f"Hold {_held(count)}, and whatever begins or resumes in that scope? [y/N] ")
        given["reason"] = options.reason
        answer = _send_change(options, lambda key: client.change("hold_calls", key=key, **given))
    end = f"until {answer['until']}" if answer["until"] else f"until `lastcall lift {answer['hold_id']}`"
    return _report(options, answer, f"Held, {end}: {_held(answer)}. No further call starts, calls in progress end.")


def lift(options: argparse.Namespace) -> None:
    with _connected(options) as client:
        hold_id = _find_hold(client, options.id)
        given = {"hold_id": hold_id, "reason": options.reason}
        answer = _send_change(options, lambda _key: client.change("lift_hold", **given))
    rest = f"; another hold keeps {answer['batches_held']:,} of them held" if answer["batches_held"] else ""
    _report(options, answer, f"Hold {hold_id} is lifted: {answer['batches']:,} batches go on{rest}.")


# Files.


def import_(options: argparse.Namespace) -> None:
    settings = ("agent_mapping_id", "from_number", "campaign_id", "name", "external_id", "scheduled_for", "timezone",
                "calls_per_minute", "max_concurrent")  # fmt: skip
    batch = {name: getattr(options, name) for name in settings if getattr(options, name) is not None}
    with _connected(options) as client:
        if options.batch is not None:
            batch["batch_id"] = _find(client, options.batch)
        try:
            with _reading(options) as file:
                name, strict = options.file.name, options.strict
                answer = _send_change(
                    options, lambda key: client.import_file(file, name, batch, key=key, strict=strict)
                )
        except RefusedError as error:
            _write_errors(options, client, error.answer)
            raise
        # The count comes first: a later step may fail.
        added = f"{answer['added']:,} contacts added, {answer['duplicates']:,} duplicates"
        left_out = f"{answer['do_not_call']:,} not to be called, {answer['invalid']:,} invalid rows"
        _report(options, answer, f"Batch {answer['batch_id']}, {answer['status']}: {added}, {left_out}.")
        _write_errors(options, client, answer)
    if answer["invalid"] and options.errors is None:
        display.note("--errors FILE writes what is wrong with the invalid rows; they can be imported when corrected")


def export(options: argparse.Namespace) -> None:
    if options.json and options.output is None:
        raise CommandError("--json says what was written to --output FILE: name it")
    with _connected(options) as client:
        pieces = client.export(_find(client, options.id), options.status)
        if options.output is None:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        size = _write(options.output, pieces)
    _report(options, {"file": str(options.output), "bytes": size}, f"{options.output}: {size:,} bytes")


# Login and logout.


def login(options: argparse.Namespace) -> None:
    app_url = service_url("LASTCALL_URL", os.environ.get("LASTCALL_URL"))
    if options.token:
        app_url = service_url("--url", options.url) or app_url
        if app_url is None:
            raise CommandError("say where the app is: --url, or LASTCALL_URL")
        token = _ask_secret("Token: ")
        session = Session(app_url=app_url, project_url=None, key=None, given_token=token)
        with contextlib.closing(HttpClient(session)) as client:
            client.list_batches(limit=1)  # one that does not count is refused
        keep_token(app_url, token)
        return _report(options, {"url": app_url}, f"Logged in at {app_url}.")
    project_url = service_url("--url", options.url or os.environ.get("SUPABASE_URL"))
    key = options.key or os.environ.get("SUPABASE_PUBLISHABLE_KEY")
    if project_url is None or not key:
        raise CommandError("say which project: --url and --key, or SUPABASE_URL and SUPABASE_PUBLISHABLE_KEY")
    email = options.email or _ask("Email: ")
    password = _ask_secret("Password: ")
    sign_in(Session(app_url=app_url, project_url=project_url, key=key), email, password)
    return _report(options, {"url": app_url or project_url, "email": email}, f"Logged in at {project_url} as {email}.")


def logout(options: argparse.Namespace) -> None:
    if not sign_out():
        display.note("the project could not be told: its session ends by itself")
    _report(options, {"logged_in": False}, "Logged out.")


COMMANDS = {
    "batches": batches,
    "show": show,
    "watch": watch,
    "events": events,
    "holds": holds,
    "cancel": cancel,
    "stop": stop,
    "pause": pause,
    "resume": resume,
    "retry": retry,
    "skip": skip,
    "opt-out": opt_out,
    "hold": hold,
    "lift": lift,
    "export": export,
    "import": import_,
    "login": login,
    "logout": logout,
}


@contextlib.contextmanager
def _connected(options: argparse.Namespace) -> Iterator[Client]:
    """The service that the options and the environment name."""
    client: Client
    if options.sql:
        database_url = os.environ.get("DATABASE_URL")
        if not database_url:
            raise CommandError("--sql needs DATABASE_URL, of a member of lastcall_admin")
        client = SqlClient(database_url)
    else:
        client = HttpClient(current_session(os.environ))
    with contextlib.closing(client):
        yield client


def _find(client: Client, given: str) -> str:
    """The UUID of a batch that is named by it, by its beginning or by its external id. The latter two are looked
    for among the newest batches."""
    if _UUID.fullmatch(given):
        return given.lower()
    prefix = given.lower() if _PREFIX.fullmatch(given) else None
    pages = _pages(lambda after: client.list_batches(limit=_PAGE, after=after))
    found: list[str] = [
        batch["id"]
        for page in itertools.islice(pages, _RECENT_BATCHES // _PAGE)
        for batch in page["batches"]
        if batch["external_id"] == given or (prefix is not None and batch["id"].startswith(prefix))
    ]
    if not found:
        raise CommandError(
            f"none of the newest {_RECENT_BATCHES} batches has the external id {given}, or an id that begins so with"
            " 6 characters or more: give its UUID"
        )
    if len(found) > 1:
        raise CommandError(f"{given} may be any of {', '.join(found)}: give more of it")
    return found[0]


def _pages(ask: Callable[[str | None], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The pages that ask gives from a cursor on, one after the other."""
    after = None
    while True:
        page = _retry_until_known(functools.partial(ask, after))
        yield page
        after = page["pagination"]["next_cursor"]
        if after is None:
            return


def _get(client: Client, batch_id: str) -> dict[str, Any]:
    return _retry_until_known(lambda: client.get_batch(batch_id))


def _to_call(batch: Batch) -> int:
    """Contacts that have no call going on, and wait for one."""
    count: int = batch["remaining_count"] - batch["in_progress"]
    return count


def _confirm_end(options: argparse.Namespace, client: Client, batch_id: str, verb: str) -> None:
    """Ask before contacts are skipped for good, or calls hung up. Raises CommandError when nobody can be asked, or the
    answer is no."""
    if not _must_ask(options, verb.lower()):
        return
    batch = _get(client, batch_id)["batch"]
    hung_up = batch["in_progress"] if options.end_calls else 0
    if batch["status"] in OVER and not hung_up:
        return  # The service says why not.
    losses = []
    if batch["status"] not in OVER and (verb == "Cancel" or options.skip_remaining):
        losses.append(f"{_to_call(batch):,} contacts will never be called.")
    if options.end_calls:
        losses.append(f"{hung_up:,} calls in progress will be hung up.")
    _agree(f"{verb} {display.batch_title(batch)}? {' '.join(losses)} [y/N] ")


def _must_ask(options: argparse.Namespace, verb: str) -> bool:
    """Whether the operator is to be asked first. Raises CommandError when nobody can be asked."""
    if options.yes:
        return False
    if not sys.stdin.isatty():
        raise CommandError(f"{verb} asks first, and there is no terminal to ask at: give --yes")
    return True


def _agree(question: str) -> None:
    """Raises DeclinedError when the answer is no."""
    if _ask(question).strip().lower() not in ("y", "yes"):
        raise DeclinedError("not confirmed: nothing was changed")


def _only_at_the_console(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(options, name) and not options.sql:
            raise CommandError(f"--{name} is for the SQL console: give --sql")


def _reach(answer: dict[str, Any]) -> str:
    """The contacts that are skipped, and their calls in progress."""
    return f"{answer['contacts_skipped']:,} contacts, {answer['calls_in_progress']:,} calls in progress,"


def _held(answer: dict[str, Any]) -> str:
    """The batches that a hold reaches, and their calls in progress."""
    return f"{answer['batches']:,} batches being dialed, with {answer['calls_in_progress']:,} calls in progress"


def _find_hold(client: Client, given: str) -> str:
    """The UUID of a hold that is named by it, or by its beginning: of an active one, the latter."""
    if _UUID.fullmatch(given):
        return given.lower()
    found: list[str] = [
        hold["id"]
        for hold in _retry_until_known(lambda: client.list_holds(include_lifted=False))["holds"]
        if _PREFIX.fullmatch(given) and hold["id"].startswith(given.lower())
    ]
    if not found:
        raise CommandError(f"no active hold has an id that begins with {given}: `lastcall holds` lists them")
    if len(found) > 1:
        raise CommandError(f"{given} may be any of {', '.join(found)}: give more of it")
    return found[0]


class DeclinedError(CommandError):
    """The operator said no."""

    exit_status = 1
    code = "declined"


def _send_change(options: argparse.Namespace, ask: Callable[[str], T]) -> T:
    """Ask for a change until its outcome is known, or say that it is not: with one key, so that it is done once."""
    is_keyed = hasattr(options, "idempotency_key")  # or else a repeat changes nothing
    key = (is_keyed and options.idempotency_key) or str(uuid.uuid4())
    repeat = ["lastcall", *sys.argv[1:]]
    if not getattr(options, "yes", True):
        repeat.append("--yes")
    if is_keyed and not options.idempotency_key:
        repeat += ["--idempotency-key", key]
    unknown = f"whether it was done is not known; to learn it, or else do it, run: {shlex.join(repeat)}"
    try:
        return _retry_until_known(lambda: ask(key))
    except OutOfReachError as error:
        if not error.may_be_done:
            raise
        raise OutOfReachError(f"{error}; {unknown}", may_be_done=True) from None
    except KeyboardInterrupt:
        display.note(f"interrupted; {unknown}")
        raise


def _retry_until_known(ask: Callable[[], T], *, patient: bool = False) -> T:
    """Call `ask` until its outcome is known, for about 15 seconds. `patient` also retries when nobody answers."""
    may_be_done = False
    for wait in _WAITS_S:
        try:
            return ask()
        except OutOfReachError as error:
            may_be_done = may_be_done or error.may_be_done
            if not (may_be_done or patient):
                raise
            display.note(f"{error}; asking again")
            time.sleep(min(max(wait, error.retry_after_s), _MAX_WAIT_S))
    try:
        return ask()
    except OutOfReachError as error:
        error.may_be_done = error.may_be_done or may_be_done
        raise


def _report(options: argparse.Namespace, answer: dict[str, Any], words: str) -> None:
    if options.json:
        display.write_json(answer)
    else:
        display.say(words)


@contextlib.contextmanager
def _reading(options: argparse.Namespace) -> Iterator[BinaryIO]:
    """The file to import."""
    with contextlib.ExitStack() as opened:
        try:
            # A bar of what was sent; at the console nothing is.
            file = opened.enter_context(display.reading(options.file, quiet=options.json or options.sql))
        except OSError as error:
            raise CommandError(f"cannot read {options.file}: {error.strerror}") from None
        yield file


def _write_errors(options: argparse.Namespace, client: Client, answer: dict[str, Any]) -> None:
    """Write the invalid rows to the file that was asked for: all, or those shown of an import that was none."""
    if options.errors is None or not answer.get("errors"):
        return
    if "import_id" in answer:
        _write(options.errors, client.import_errors(answer["import_id"]))
    else:
        _write(options.errors, iter([ERRORS_HEADER, error_lines(answer["errors"])]))


def _write(path: Path, pieces: Iterator[bytes]) -> int:
    """Write a file that is there when it is whole; its size. Like a session, it is for its owner alone."""
    size = 0
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with open(descriptor, "wb") as file:
                for piece in pieces:
                    size += file.write(piece)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from None
    return size


def _ask(question: str) -> str:
    """Ask at the terminal, and return the line that the user typed."""
    if not sys.stdin.isatty():
        raise CommandError(f"there is no terminal to ask at: {question}")
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().rstrip("\n")


def _ask_secret(question: str) -> str:
    """A secret: typed unseen, or the first line of what is piped in. Never an argument, which others could see."""
    secret = getpass.getpass(question) if sys.stdin.isatty() else sys.stdin.readline().strip()
    if not secret:
        raise NotLoggedInError("nothing was given")
    return secret
