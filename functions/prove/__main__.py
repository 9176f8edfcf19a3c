"""One process of a proof: `python -m functions.prove carrier|dialer|edge`. It ends when its stdin does."""

from __future__ import annotations

import os
import sys

from ..processes import end_with_stdin


def _main(kind: str) -> int:
    end_with_stdin()
    if kind == "carrier":
        from ..dialer.simulated_carrier import Behaviour, serve

        # Short calls: many of them make a race.
        serve(Behaviour(record=os.environ["RECORD"], ring_s=(0.02, 0.1), talk_s=(0.05, 0.4)))
    elif kind == "edge":
        from .edge import main as dial_as_edge

        dial_as_edge()
    else:
        from ..cli import main

        return main(["process", "--loop"])
    return 0


sys.exit(_main(sys.argv[1]))
