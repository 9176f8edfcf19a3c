"""`lastcall prove`: the race of ends against dialers, on the user's own database, with a verdict.

Dialers (`lastcall process --loop`) dial at a simulated carrier, which is a process of its own and keeps its own record.
Users cancel, stop, pause, skip, opt out and hold at random, while dialers are frozen and killed. This process reports
how calls ended, from the carrier's record, in the place of webhooks. A checker reads the records and nothing else
(checker.py).
"""

from __future__ import annotations

import signal
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..local import CommandError

MIN_CONTACTS = 100
MAX_CONTACTS = 50_000
"""Most contacts of a batch: there are no more numbers for fiction (world.py)."""
MAX_DIALERS = 8
"""A dialer has up to 10 connections, and a PostgreSQL usually 100."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The options of a race."""

    seconds: float
    contacts: int
    """Contacts in each batch."""
    dialers: int
    seed: int | None
    """Seed of the random choices; None: a random seed."""
    way: Literal["core", "edge"]
    """The code that ends and dials: the core, or the usual edge functions."""
    out: Path | None
    """The folder of the records, empty or new; None: a temporary one."""
    keep: bool
    """Whether the rows of the race stay in the database."""


def run(plan: Plan) -> int:
    """Run the race. Everything that was started is ended, and the rows of the race are removed.

    Returns the exit status: 0 PASS, 1 FAIL, 130 interrupted. Raises CommandError: an option is out of range, the
    database has no core or others dial in it, or something broke.
    """
    if not MIN_CONTACTS <= plan.contacts <= MAX_CONTACTS:
        raise CommandError(f"--contacts must be from {MIN_CONTACTS} to {MAX_CONTACTS:,}")
    if not 1 <= plan.dialers <= MAX_DIALERS:
        raise CommandError(f"--dialers must be from 1 to {MAX_DIALERS}")
    folder = _new_folder(plan.out)
    import psycopg

    from .story import race

    stack = ExitStack()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return race(plan, folder, stack)
    except KeyboardInterrupt:
        return 130
    except (psycopg.Error, OSError) as error:
        raise CommandError(f"the race broke off: {error}") from error
    finally:
        # An impatient second Ctrl-C must not keep what was started from being ended.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stack.close()
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, before)


def _new_folder(out: Path | None) -> Path:
    if out is None:
        return Path(tempfile.mkdtemp(prefix="lastcall-prove-"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        is_empty = not any(out.iterdir())
    except OSError as error:
        raise CommandError(f"cannot write the records into {out}: {error.strerror}") from None
    if not is_empty:
        raise CommandError(f"--out must be an empty or a new folder, and {out} is not")
    return out
