"""`python -m tests.soak`: run the soak for at most five minutes and print what was found; exit status 1 if anything
does not hold."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..support.servers import new_server, short_lived_folder
from .soak import Plan, soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--contacts", type=int, default=500, help="of each batch")
    parser.add_argument("--dialers", type=int, default=8)
    parser.add_argument("--killed", type=int, default=2, help="dialers that are killed half way")
    parser.add_argument("--seconds", type=float, default=200, help="to dial")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    plan = Plan(
        batches=options.batches,
        contacts=options.contacts,
        dialers=options.dialers,
        killed=options.killed,
        dial_s=options.seconds,
        drain_s=95,
        changes_a_second=options.batches / 40,
        reconcile_after_s=60,
        seed=options.seed,
    )
    with short_lived_folder() as folder:
        server = new_server(folder / "postgres")
        server.start()
        try:
            logs = Path(folder)
            report = soak(plan, server, logs)
        finally:
            server.stop()
    print(*report.lines(), sep="\n")
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
