"""Where the service is and who one is there: from the environment, or kept by `lastcall login`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..local import CommandError

if TYPE_CHECKING:
    from supabase import Client

TIMEOUT_S = 90.0
"""Longer than a procedure may take (LASTCALL_STATEMENT_TIMEOUT_MS)."""
CONNECT_TIMEOUT_S = 5.0


class NotLoggedInError(CommandError):
    """There is no login, or the service refuses the token."""

    code = "not_logged_in"

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: log in with `lastcall login`, or set LASTCALL_TOKEN")


class OutOfReachError(CommandError):
    """No answer. may_be_done: what was asked may have been done all the same. retry_after_s: when to ask again."""

    exit_status = 3
    code = "out_of_reach"

    def __init__(self, message: str, *, may_be_done: bool, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.may_be_done = may_be_done
        self.retry_after_s = retry_after_s


class Session:
    """A signed-in user. app_url: where the app serves the functions itself; project_url: the Supabase project; one of
    them is there. key: the project's publishable key. given_token: instead of a session that is kept."""

    def __init__(
        self, *, app_url: str | None, project_url: str | None, key: str | None, given_token: str | None = None
    ) -> None:
        self.app_url = app_url
        self.project_url = project_url
        self.key = key
        self._given_token = given_token
        self._account: Client | None = None

    @property
    def url(self) -> str:
        """Where the functions are."""
        return self.app_url or self.project_url or ""

    def token(self) -> str:
        """The user's token; a kept one is refreshed when it ends soon. Raises NotLoggedInError, OutOfReachError."""
        if self._given_token is not None:
            return self._given_token
        from supabase_auth.errors import AuthError

        if self._account is None:
            self._account = supabase_client(self.project_url or "", self.key, SessionFile())
        try:
            session = self._account.auth.get_session()
        except AuthError as error:
            raise _auth_error(error, "The session has ended") from None
        if session is None:
            raise NotLoggedInError("The session has ended")
        return session.access_token

    def close(self) -> None:
        """Close the connections to the project's Auth."""
        if self._account is not None:
            close_client(self._account)


def close_client(client: Client) -> None:
    """Close the connections of a client that supabase_client made."""
    if client.options.httpx_client is not None:
        client.options.httpx_client.close()


def supabase_client(url: str, key: str | None, storage: Any = None) -> Client:
    """A client of the project, or of the app that serves its functions."""
    try:
        import httpx
        from supabase import Client, ClientOptions
    except ImportError:
        raise CommandError("this needs the Supabase client: pip install 'lastcall[operator]', or use --sql") from None
    # One that follows no redirect, so that no token goes elsewhere, and waits longer than the library's 5 seconds.
    http = httpx.Client(timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S))
    options = ClientOptions(httpx_client=http, auto_refresh_token=False)
    if storage is not None:
        options.storage = storage
    # The library wants a key; the app asks for none.
    return Client(url, key or "none", options)


class SessionFile:
    """The file in which `lastcall login` keeps who is logged in where, for its owner alone; also the storage
    in which the Supabase client keeps its session."""

    def __init__(self) -> None:
        home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        self.path = Path(home) / "lastcall" / "session.json"

    def read(self) -> dict[str, Any]:
        """The kept login; empty if there is none."""
        try:
            kept = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CommandError(f"cannot read {self.path}: {error.strerror}") from None
        except ValueError:
            kept = None
        if not isinstance(kept, dict):
            raise CommandError(f"{self.path} is damaged: `lastcall logout` removes it")
        return kept

    def write(self, kept: dict[str, Any]) -> None:
        """Replace it, whole or not at all."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix="session-")  # 0600
            try:
                with open(descriptor, "w") as file:
                    json.dump(kept, file)
                os.replace(name, self.path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            raise CommandError(f"cannot keep the session in {self.path}: {error.strerror}") from None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    # As the Supabase client's storage.

    def get_item(self, key: str) -> str | None:
        item: str | None = self.read().get("session", {}).get(key)
        return item

    def set_item(self, key: str, value: str) -> None:
        kept = self.read()
        self.write({**kept, "session": {**kept.get("session", {}), key: value}})

    def remove_item(self, key: str) -> None:
        kept = self.read()
        if kept.get("session", {}).pop(key, None) is not None:
            self.write(kept)


class _NewSession(SessionFile):
    """The file as it will be once the Supabase client has a session to keep."""

    def __init__(self, kept: dict[str, Any]) -> None:
        super().__init__()
        self._kept = kept

    def read(self) -> dict[str, Any]:
        return self._kept


def current_session(env: Mapping[str, str]) -> Session:
    """The caller: by LASTCALL_TOKEN, or else by the login. Raises CommandError."""
    app_url, project_url = (service_url(name, env.get(name)) for name in ("LASTCALL_URL", "SUPABASE_URL"))
    if env.get("LASTCALL_TOKEN"):
        if not app_url and not project_url:
            raise CommandError("LASTCALL_TOKEN is set: set SUPABASE_URL, or LASTCALL_URL, too")
        return Session(
            app_url=app_url,
            project_url=project_url,
            key=env.get("SUPABASE_PUBLISHABLE_KEY"),
            given_token=env["LASTCALL_TOKEN"],
        )
    kept = SessionFile().read()
    if not kept:
        raise NotLoggedInError("Not logged in")
    session = Session(
        app_url=kept.get("app_url"),
        project_url=kept.get("project_url"),
        key=kept.get("key"),
        given_token=kept.get("token"),
    )
    # A token goes to where it was got for, and nowhere else.
    if (app_url or project_url) not in (None, session.url):
        raise NotLoggedInError(f"Logged in at {session.url}, but the environment names {app_url or project_url}")
    return session


def keep_token(app_url: str, token: str) -> None:
    """Log in with a token, where the app serves the functions."""
    SessionFile().write({"app_url": app_url, "token": token})


def sign_in(session: Session, email: str, password: str) -> None:
    """Log in at the project's Auth; what was kept before stays until that is done.
    Raises NotLoggedInError, OutOfReachError."""
    storage = _NewSession({"app_url": session.app_url, "project_url": session.project_url, "key": session.key})
    account = supabase_client(session.project_url or "", session.key, storage)
    from supabase_auth.errors import AuthError

    try:
        account.auth.sign_in_with_password({"email": email, "password": password})
    except AuthError as error:
        raise _auth_error(error, f"{session.project_url} refused") from None
    finally:
        close_client(account)


def sign_out() -> bool:
    """Forget who is logged in; False if the project could not be told that the session is over."""
    file = SessionFile()
    try:
        kept = file.read()
        if not kept.get("session"):
            return True
        from supabase_auth.errors import AuthError

        account = supabase_client(kept["project_url"], kept.get("key"), file)
        try:
            account.auth.sign_out({"scope": "local"})
        except AuthError:
            return False
        finally:
            close_client(account)
        return True
    except CommandError:
        return False
    finally:
        file.remove()


def service_url(name: str, value: str | None) -> str | None:
    """The URL that a setting or option of this name gives. Raises CommandError."""
    value = (value or "").rstrip("/")
    if value and not value.startswith(("https://", "http://")):
        raise CommandError(f"{name} must be an http(s) URL")
    return value or None


def _auth_error(error: Exception, what: str) -> CommandError:
    from supabase_auth.errors import AuthRetryableError

    if isinstance(error, AuthRetryableError):
        return OutOfReachError(f"The project's Auth is out of reach: {error}", may_be_done=False)
    return NotLoggedInError(f"{what}: {error}")
