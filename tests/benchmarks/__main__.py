"""`python -m tests.benchmarks`: measure, and print Markdown tables."""

from __future__ import annotations

import argparse
import signal
import sys

from . import cancel, claims, cold_start, held, imports, neighbours, overload, scopes, serving, silence, webhooks, wide
from .lab import open_lab, progress

BENCHMARKS = ("cancel", "silence", "claims", "webhooks", "imports", "overload", "neighbours", "held", "scopes",
              "cold-start", "serving")  # fmt: skip


def main() -> int:
    arguments = _arguments()
    # However it is told to end, also from a shell's background: stop the server, delete its folder.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with open_lab() as lab:
            print(f"{lab.describe()}\n", flush=True)
            if "cancel" in arguments.only:
                print(cancel.run(lab, arguments.sizes, arguments.runs), flush=True)
                print(wide.run(lab, min(100_000, max(arguments.sizes)), min(arguments.runs, 3)), flush=True)
            if "silence" in arguments.only:
                largest = max(arguments.sizes)
                sizes, rounds = [min(1000, largest), largest], [arguments.runs * 4, arguments.runs]
                print(silence.run(lab, sizes, rounds), flush=True)
            if "claims" in arguments.only:
                print(claims.run(lab, min(arguments.runs, 3)), flush=True)
            if "webhooks" in arguments.only:
                print(webhooks.run(lab, arguments.runs), flush=True)
            if "imports" in arguments.only:
                print(imports.run(lab, [n for n in arguments.sizes if n >= 1000], min(arguments.runs, 3)), flush=True)
            if "overload" in arguments.only:
                print(overload.run(lab, arguments.runs), flush=True)
            if "neighbours" in arguments.only:
                print(neighbours.run(lab, min(arguments.runs, 3)), flush=True)
            if "held" in arguments.only:
                print(held.run(lab, min(arguments.runs, 3), size=max(arguments.sizes)), flush=True)
            if "scopes" in arguments.only:
                largest = max(arguments.sizes)
                print(scopes.holds(lab, arguments.runs * 4, size=max(largest, 1000)), flush=True)
                print(scopes.skips(lab, min(arguments.runs, 3), largest), flush=True)
            if "cold-start" in arguments.only:
                print(cold_start.run(lab, arguments.runs * 4), flush=True)
            if "serving" in arguments.only:
                print(serving.run(lab, min(arguments.runs, 3)), flush=True)
    except KeyboardInterrupt:
        progress("interrupted")
        return 130
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--sizes",
        type=lambda text: [int(size) for size in text.split(",")],
        default=[342, 10_000, 100_000, 1_000_000],
        help="contacts of a batch, with commas between (default: 342,10000,100000,1000000)",
    )
    parser.add_argument("--runs", type=int, default=5, help="runs of each measurement (default: 5)")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(BENCHMARKS),
        help=f"some of {','.join(BENCHMARKS)} (default: all)",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(BENCHMARKS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(BENCHMARKS)}")
    if arguments.runs < 1 or min(arguments.sizes) < 1:
        parser.error("--runs and --sizes must be at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
