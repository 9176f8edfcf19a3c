"""The environment describes a service, or says what is missing."""

from __future__ import annotations

import pytest

from functions._shared.settings import Settings, SettingsError

pytestmark = pytest.mark.one_postgres

SECRET = "x" * 32
POSTGRES = {"DATABASE_URL": "postgresql://db.example/postgres", "SUPABASE_JWT_SECRET": SECRET}
SUPABASE = {"SUPABASE_URL": "https://project.example", "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_x"}


def test_a_database_and_a_secret_are_enough() -> None:
    assert Settings.from_env(POSTGRES) == Settings(
        database_url="postgresql://db.example/postgres", jwt_secret=SECRET, transport="postgres"
    )


def test_a_project_and_its_publishable_key_are_enough() -> None:
    assert Settings.from_env(SUPABASE) == Settings(
        supabase_url="https://project.example",
        publishable_key="sb_publishable_x",
        transport="postgrest",
        jwt_issuer="https://project.example/auth/v1",
    )


def test_with_both_the_functions_use_the_database_unless_told_otherwise() -> None:
    assert Settings.from_env(POSTGRES | SUPABASE).transport == "postgres"
    for transport in ("postgres", "postgrest"):
        assert Settings.from_env(POSTGRES | SUPABASE | {"LASTCALL_TRANSPORT": transport}).transport == transport


@pytest.mark.parametrize("url", ["https://project.example", "https://project.example/", "https://project.example//"])
def test_a_slash_at_the_end_of_the_projects_url_makes_no_difference(url: str) -> None:
    settings = Settings.from_env(SUPABASE | {"SUPABASE_URL": url})
    assert settings.supabase_url == "https://project.example"
    assert settings.jwt_issuer == "https://project.example/auth/v1"


def test_issuer_and_audience_may_be_set() -> None:
    given = {"SUPABASE_JWT_ISSUER": "https://issuer.example", "SUPABASE_JWT_AUDIENCE": "people"}
    settings = Settings.from_env(SUPABASE | given)
    assert (settings.jwt_issuer, settings.jwt_audience) == ("https://issuer.example", "people")


def test_limits_and_the_address_may_be_set() -> None:
    settings = Settings.from_env(
        POSTGRES
        | {
            "HOST": "0.0.0.0",
            "PORT": "80",
            "LASTCALL_POOL_SIZE": "3",
            "LASTCALL_POOL_RESERVED": "1",
            "LASTCALL_POOL_TIMEOUT_MS": "250",
            "LASTCALL_POOL_MAX_WAITING": "7",
            "LASTCALL_STATEMENT_TIMEOUT_MS": "1000",
            "LASTCALL_LOCK_TIMEOUT_MS": "500",
            "LASTCALL_SERVICE_LOCK_TIMEOUT_MS": "100",
            "LASTCALL_MAX_BODY_BYTES": "2048",
        }
    )
    assert (settings.host, settings.port, settings.pool_size) == ("0.0.0.0", 80, 3)
    assert (settings.pool_reserved, settings.pool_timeout_s, settings.pool_max_waiting) == (1, 0.25, 7)
    assert (settings.statement_timeout_ms, settings.max_body_bytes) == (1000, 2048)
    assert (settings.lock_timeout_ms, settings.service_lock_timeout_ms) == (500, 100)


@pytest.mark.parametrize(("statement", "lock", "service_lock"), [(60_000, 10_000, 1_000), (6_000, 3_000, 1_000)])
def test_a_lock_wait_ends_before_the_statement_does(statement: int, lock: int, service_lock: int) -> None:
    settings = Settings.from_env(POSTGRES | {"LASTCALL_STATEMENT_TIMEOUT_MS": str(statement)})
    assert (settings.lock_timeout_ms, settings.service_lock_timeout_ms) == (lock, service_lock)


def test_calls_are_reconciled_no_sooner_than_a_request_has_ended() -> None:
    settings = Settings.from_env(POSTGRES | {"LASTCALL_RECONCILE_AFTER_S": "32"})
    assert (settings.request_limit_s, settings.arrival_limit_s, settings.reconcile_after_s) == (20, 32, 32)


@pytest.mark.parametrize("name", ["SUPABASE_URL", "LASTCALL_TRANSPORT", "HOST", "PORT", "LASTCALL_POOL_SIZE"])
def test_empty_means_not_set(name: str) -> None:
    assert Settings.from_env(POSTGRES | {name: ""}) == Settings.from_env(POSTGRES)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({}, "set DATABASE_URL, or SUPABASE_URL and SUPABASE_PUBLISHABLE_KEY"),
        ({"SUPABASE_JWT_SECRET": SECRET}, "set DATABASE_URL, or SUPABASE_URL and SUPABASE_PUBLISHABLE_KEY"),
        ({"SUPABASE_URL": "https://project.example"}, "SUPABASE_PUBLISHABLE_KEY"),
        ({"SUPABASE_PUBLISHABLE_KEY": "sb_publishable_x"}, "SUPABASE_URL"),
        ({"DATABASE_URL": "postgresql://db"}, "set SUPABASE_JWT_SECRET, or SUPABASE_URL"),
        ({**POSTGRES, "LASTCALL_TRANSPORT": "postgrest"}, "SUPABASE_URL and SUPABASE_PUBLISHABLE_KEY"),
        ({**SUPABASE, "LASTCALL_TRANSPORT": "postgres"}, "the postgres transport needs DATABASE_URL"),
        ({**POSTGRES, "LASTCALL_TRANSPORT": "Postgres"}, "LASTCALL_TRANSPORT must be postgres or postgrest"),
        ({**POSTGRES, "DATABASE_URL": "db.example"}, "DATABASE_URL must be a postgresql:// URL"),
        ({**POSTGRES, "DATABASE_URL": "mysql://db.example"}, "DATABASE_URL must be a postgresql:// URL"),
        (
            {**POSTGRES, "DATABASE_URL": "postgresql://u:pass%zz@db"},
            "^DATABASE_URL is no URL that PostgreSQL's clients read$",
        ),
        ({**POSTGRES, "SUPABASE_JWT_SECRET": "x" * 31}, "SUPABASE_JWT_SECRET must have at least 32 bytes"),
        ({**POSTGRES, "LASTCALL_CRON_SECRET": "x" * 31}, "LASTCALL_CRON_SECRET must have at least 32 bytes"),
        (
            {**POSTGRES, "SUPABASE_JWT_SECRET_PREVIOUS": "x" * 31},
            "SUPABASE_JWT_SECRET_PREVIOUS must have at least 32 bytes",
        ),
        (
            {**POSTGRES, "LASTCALL_CRON_SECRET_PREVIOUS": "x" * 31},
            "LASTCALL_CRON_SECRET_PREVIOUS must have at least 32 bytes",
        ),
        ({**SUPABASE, "LASTCALL_CRON_SECRET": "x" * 32}, "LASTCALL_CRON_SECRET needs SUPABASE_SECRET_KEY"),
        ({**SUPABASE, "SUPABASE_URL": "project.example"}, r"SUPABASE_URL must be an http\(s\) URL"),
        *(
            ({**POSTGRES, name: value}, f"{name} must be a whole number from")
            for name in ("PORT", "LASTCALL_POOL_SIZE", "LASTCALL_POOL_TIMEOUT_MS", "LASTCALL_MAX_BODY_BYTES")
            for value in ("x", "-1", "1.5", "1e3", " 5", "0x10", "²", "9" * 20)
        ),
        ({**POSTGRES, "LASTCALL_CARRIER": "pigeon"}, "LASTCALL_CARRIER must be one of simulator, ultravox"),
        ({**POSTGRES, "LASTCALL_CARRIER": "ultravox"}, "the carrier ultravox needs ULTRAVOX_API_KEY"),
        ({**POSTGRES, "LASTCALL_CARRIER": "simulator"}, "the carrier simulator needs CARRIER_URL"),
        ({**POSTGRES, "CARRIER_URL": "carrier.example"}, r"CARRIER_URL must be an http\(s\) URL"),
        ({**POSTGRES, "LASTCALL_RECONCILE_AFTER_S": "20"}, "LASTCALL_RECONCILE_AFTER_S must be at least 32"),
        ({**POSTGRES, "LASTCALL_RECONCILE_AFTER_S": "31"}, "LASTCALL_RECONCILE_AFTER_S must be at least 32"),
        ({**POSTGRES, "LASTCALL_CARRIER_TIMEOUT_MS": "100000"}, "LASTCALL_RECONCILE_AFTER_S must be at least 302"),
        ({**POSTGRES, "LASTCALL_POOL_SIZE": "0"}, "LASTCALL_POOL_SIZE must be a whole number from 1"),
        ({**POSTGRES, "LASTCALL_STATEMENT_TIMEOUT_MS": "0"}, "LASTCALL_STATEMENT_TIMEOUT_MS must be"),
    ],
    ids=lambda value: str(value)[-50:],
)
def test_wrong_settings_are_refused_with_the_setting_to_change(env: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        Settings.from_env(env)


def test_a_dialer_verifies_nobodys_tokens() -> None:
    env = {"DATABASE_URL": "postgresql://db", "LASTCALL_CARRIER": "ultravox", "ULTRAVOX_API_KEY": "a.b"}
    settings = Settings.from_env(env, serving=False)
    assert (settings.carrier, settings.ultravox_api_key, settings.carrier_url) == ("ultravox", "a.b", None)


def test_a_secret_of_32_bytes_may_have_fewer_characters() -> None:
    assert Settings.from_env(POSTGRES | {"SUPABASE_JWT_SECRET": "é" * 16}).jwt_secret == "é" * 16
