"""Settings from the environment, checked once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

MIN_SECRET_BYTES = 32
_POSTGRES = ("postgresql://", "postgres://")
CARRIERS = {"simulator": "CARRIER_URL", "ultravox": "ULTRAVOX_API_KEY"}
"""The carriers there are (functions/dialer/), and what each needs to be told."""


class SettingsError(Exception):
    """The environment does not describe a service that can run; the message says what to set."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the database is, whose tokens count, and the limits of the service."""

    database_url: str | None = None
    """Postgres for the functions, a libpq URI."""
    supabase_url: str | None = None
    """The project's URL: its PostgREST, and its JWKS."""
    publishable_key: str | None = None
    """The project's publishable (or anon) key, for PostgREST."""
    transport: str = "postgres"
    """postgres or postgrest."""
    jwt_secret: str | None = None
    """HS256 secret. When set, HS256 tokens count and no others."""
    jwt_secret_previous: str | None = None
    """An HS256 secret that is being replaced: what it has signed counts as well."""
    secret_key: str | None = None
    """The project's secret (or service_role) key: who sends it is the service."""
    secret_key_previous: str | None = None
    """A secret key that is being replaced: who sends it is the service as well."""
    cron_secret: str | None = None
    """A secret of one's own for whoever runs the functions of the service, such as cron."""
    cron_secret_previous: str | None = None
    """The one that is being replaced: it counts as well."""
    jwt_issuer: str | None = None
    """The iss that a token must have; None: any, but it must have one."""
    jwt_audience: str = "authenticated"
    """The aud that a token must have."""
    host: str = "127.0.0.1"
    port: int = 8787
    pool_size: int = 10
    """Most database connections."""
    pool_reserved: int = 4
    """Connections for the procedures that keep calls from starting, and no others. One agency uses at most one fewer at
    a time. At least one connection is for everything else."""
    pool_timeout_s: float = 5.0
    """Seconds that a request waits for a connection before it is answered 503."""
    pool_max_waiting: int = 200
    """Most requests that wait for a connection; one more is answered 503 at once."""
    statement_timeout_ms: int = 60_000
    """Milliseconds after which Postgres gives a procedure up and undoes it."""
    lock_timeout_ms: int = 10_000
    """Milliseconds that a person's request waits for a lock, such as a held batch's, before it is answered 503."""
    service_lock_timeout_ms: int = 1_000
    """The same for the service, such as the dialer."""
    max_body_bytes: int = 65_536
    """A larger request body is answered 413."""
    max_upload_bytes: int = 256 << 20
    """The same for uploaded files."""
    carrier: str | None = None
    """The carrier that places the calls, one of CARRIERS; without one no batch can be dialed."""
    carrier_url: str | None = None
    """Where the carrier is, if not at its own public address."""
    ultravox_api_key: str | None = None
    carrier_timeout_s: float = 10.0
    """Seconds that the carrier may take to answer; then nobody knows whether it has the call."""
    dial_concurrency: int = 50
    """Most requests to the carrier at a time."""
    place_within_s: float = 2.0
    """Seconds, from before start_call is asked, in which the request for a call leaves for the carrier, or never."""
    reconcile_every_s: float = 30.0
    """Seconds between two times that the carrier is asked about calls whose end is not known."""
    metrics_host: str = "127.0.0.1"
    metrics_ports: range | None = None
    """Ports of the metrics: a process takes the first that is free. None: no metrics are served."""
    dialer_metrics_ports: range | None = None
    """The same for a dialer."""
    traces: str | None = None
    """Where traces go, otlp or console, as the environment of OpenTelemetry says; None: nowhere."""
    reconcile_after_s: int = 300
    """Seconds that a call is in progress before the carrier is asked about it, and after which a call that
    the carrier never heard of was not placed, and will not be."""

    @property
    def request_limit_s(self) -> float:
        """Most seconds that the dialer lets a request to place a call take, the wait for a connection included."""
        return 2 * self.carrier_timeout_s

    @property
    def arrival_limit_s(self) -> float:
        """Most seconds from start_call until the request can become no call any more: the request leaves within
        place_within_s, and the carrier may act for carrier_timeout_s on a request that the dialer has given up."""
        return self.place_within_s + self.request_limit_s + self.carrier_timeout_s

    @classmethod
    def from_env(cls, env: Mapping[str, str], *, serving: bool = True) -> Settings:
        """Read the settings; raises SettingsError with what to set. serving: people's tokens are verified."""
        url = _url(env, "SUPABASE_URL")
        statement_timeout_ms = _integer(env, "LASTCALL_STATEMENT_TIMEOUT_MS", 60_000, 1, 86_400_000)
        # A procedure that had to wait has time left to work.
        longest_lock_timeout_ms = max(statement_timeout_ms // 2, 1)
        settings = cls(
            database_url=env.get("DATABASE_URL") or None,
            supabase_url=url,
            publishable_key=env.get("SUPABASE_PUBLISHABLE_KEY") or None,
            transport=env.get("LASTCALL_TRANSPORT") or ("postgres" if env.get("DATABASE_URL") else "postgrest"),
            jwt_secret=env.get("SUPABASE_JWT_SECRET") or None,
            jwt_secret_previous=env.get("SUPABASE_JWT_SECRET_PREVIOUS") or None,
            secret_key=env.get("SUPABASE_SECRET_KEY") or None,
            secret_key_previous=env.get("SUPABASE_SECRET_KEY_PREVIOUS") or None,
            cron_secret=env.get("LASTCALL_CRON_SECRET") or None,
            cron_secret_previous=env.get("LASTCALL_CRON_SECRET_PREVIOUS") or None,
            jwt_issuer=env.get("SUPABASE_JWT_ISSUER") or (f"{url}/auth/v1" if url else None),
            jwt_audience=env.get("SUPABASE_JWT_AUDIENCE") or "authenticated",
            host=env.get("HOST") or "127.0.0.1",
            port=_integer(env, "PORT", 8787, 0, 65_535),
            pool_size=_integer(env, "LASTCALL_POOL_SIZE", 10, 1, 1_000),
            pool_reserved=_integer(env, "LASTCALL_POOL_RESERVED", 4, 0, 1_000),
            pool_timeout_s=_integer(env, "LASTCALL_POOL_TIMEOUT_MS", 5_000, 1, 600_000) / 1000,
            pool_max_waiting=_integer(env, "LASTCALL_POOL_MAX_WAITING", 200, 1, 1_000_000),
            statement_timeout_ms=statement_timeout_ms,
            lock_timeout_ms=_integer(
                env, "LASTCALL_LOCK_TIMEOUT_MS", min(10_000, longest_lock_timeout_ms), 1, longest_lock_timeout_ms
            ),
            service_lock_timeout_ms=_integer(
                env, "LASTCALL_SERVICE_LOCK_TIMEOUT_MS", min(1_000, longest_lock_timeout_ms), 1, longest_lock_timeout_ms
            ),
            max_body_bytes=_integer(env, "LASTCALL_MAX_BODY_BYTES", 65_536, 1_024, 1 << 30),
            max_upload_bytes=_integer(env, "LASTCALL_MAX_UPLOAD_BYTES", 256 << 20, 1_024, 1 << 40),
            carrier=env.get("LASTCALL_CARRIER") or None,
            carrier_url=_url(env, "CARRIER_URL"),
            ultravox_api_key=env.get("ULTRAVOX_API_KEY") or None,
            carrier_timeout_s=_integer(env, "LASTCALL_CARRIER_TIMEOUT_MS", 10_000, 100, 120_000) / 1000,
            place_within_s=_integer(env, "LASTCALL_PLACE_WITHIN_MS", 2_000, 100, 60_000) / 1000,
            dial_concurrency=_integer(env, "LASTCALL_DIAL_CONCURRENCY", 50, 1, 1_000),
            reconcile_every_s=_integer(env, "LASTCALL_RECONCILE_EVERY_MS", 30_000, 100, 3_600_000) / 1000,
            reconcile_after_s=_integer(env, "LASTCALL_RECONCILE_AFTER_S", 300, 1, 86_400),
            metrics_host=env.get("LASTCALL_METRICS_HOST") or "127.0.0.1",
            metrics_ports=_ports(env, "LASTCALL_METRICS_PORT"),
            dialer_metrics_ports=_ports(env, "LASTCALL_DIALER_METRICS_PORT"),
            traces=_traces(env),
        )
        settings._check()
        if serving and not settings.jwt_secret and not settings.supabase_url:
            raise SettingsError("set SUPABASE_JWT_SECRET, or SUPABASE_URL for the project's JWKS")
        if settings.carrier is not None:
            _check_carrier(settings.carrier, env)
        return settings

    def _check(self) -> None:
        if self.transport not in ("postgres", "postgrest"):
            raise SettingsError("LASTCALL_TRANSPORT must be postgres or postgrest")
        if self.transport == "postgres" and not self.database_url:
            raise SettingsError("the postgres transport needs DATABASE_URL")
        if self.transport == "postgres" and not (self.database_url or "").startswith(_POSTGRES):
            raise SettingsError("DATABASE_URL must be a postgresql:// URL")
        if self.transport == "postgres" and not _is_conninfo(self.database_url or ""):
            raise SettingsError("DATABASE_URL is no URL that PostgreSQL's clients read")
        if self.transport == "postgrest" and not (self.supabase_url and self.publishable_key):
            raise SettingsError(
                "set DATABASE_URL, or SUPABASE_URL and SUPABASE_PUBLISHABLE_KEY for the PostgREST transport"
            )
        for name, secret in (
            ("SUPABASE_JWT_SECRET", self.jwt_secret),
            ("SUPABASE_JWT_SECRET_PREVIOUS", self.jwt_secret_previous),
            ("LASTCALL_CRON_SECRET", self.cron_secret),
            ("LASTCALL_CRON_SECRET_PREVIOUS", self.cron_secret_previous),
        ):
            if secret and len(secret.encode()) < MIN_SECRET_BYTES:
                raise SettingsError(f"{name} must have at least {MIN_SECRET_BYTES} bytes")
        if self.transport == "postgrest" and self.cron_secret and not self.secret_key:
            raise SettingsError("LASTCALL_CRON_SECRET needs SUPABASE_SECRET_KEY with the PostgREST transport")
        if self.reconcile_after_s < self.arrival_limit_s:
            raise SettingsError(
                f"LASTCALL_RECONCILE_AFTER_S must be at least {math.ceil(self.arrival_limit_s)}"
                f" while LASTCALL_CARRIER_TIMEOUT_MS is {self.carrier_timeout_s * 1000:.0f}:"
                " a request may reach the carrier until then"
            )


def _is_conninfo(url: str) -> bool:
    from psycopg import ProgrammingError  # only here: not everything that reads settings connects
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(url)
    except ProgrammingError:  # its message may quote the password
        return False
    return True


def _check_carrier(name: str, env: Mapping[str, str]) -> None:
    if name not in CARRIERS:
        raise SettingsError(f"LASTCALL_CARRIER must be one of {', '.join(CARRIERS)}")
    if not env.get(CARRIERS[name]):
        raise SettingsError(f"the carrier {name} needs {CARRIERS[name]}")


def _ports(env: Mapping[str, str], name: str) -> range | None:
    value = env.get(name)
    if not value:
        return None
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", value)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last <= 65_535:
        raise SettingsError(f"{name} must be a port, or a range of ports such as 9464-9467")
    if find_spec("prometheus_client") is None:
        raise SettingsError(f"{name} needs prometheus_client: pip install 'lastcall[metrics]'")
    return range(first, last + 1)


def _traces(env: Mapping[str, str]) -> str | None:
    """As OpenTelemetry's specification has it, except that without any of these there are no traces."""
    endpoint = env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    exporter = env.get("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    if exporter == "none" or (env.get("OTEL_SDK_DISABLED") or "").lower() == "true":
        return None
    if exporter not in ("otlp", "console"):
        raise SettingsError("OTEL_TRACES_EXPORTER must be otlp, console or none")
    protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if exporter == "otlp" and protocol not in (None, "", "http/protobuf"):
        raise SettingsError("OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf")
    needed = "opentelemetry.exporter.otlp.proto.http" if exporter == "otlp" else "opentelemetry.sdk"
    try:
        found = find_spec(needed) is not None
    except ModuleNotFoundError:  # not even what it is within
        found = False
    if not found:
        raise SettingsError("traces need OpenTelemetry's SDK and its OTLP exporter: pip install 'lastcall[otel]'")
    return exporter


def _url(env: Mapping[str, str], name: str) -> str | None:
    value = (env.get(name) or "").rstrip("/")
    if value and not value.startswith(("https://", "http://")):
        raise SettingsError(f"{name} must be an http(s) URL")
    return value or None


def _integer(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    value = env.get(name)
    if not value:
        return default
    if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
        raise SettingsError(f"{name} must be a whole number from {low} to {high}")
    return int(value)
