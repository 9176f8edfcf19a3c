"""One process of the demo: `python -m functions.demo serve|carrier|dialer`. It ends when its stdin does."""

from __future__ import annotations

import os
import sys

from ..processes import end_with_stdin


def _main(kind: str) -> int:
    end_with_stdin()
    if kind == "carrier":
        from ..dialer.simulated_carrier import Behaviour, serve

        # Some webhooks come twice, and some late: it does not matter.
        serve(
            Behaviour(
                webhook_url=os.environ["WEBHOOK_URL"],
                webhook_secret=os.environ["WEBHOOK_SECRET"],
                repeated=0.05,
                late=0.1,
            )
        )
        return 0
    from ..cli import main

    return main(["serve"] if kind == "serve" else ["process", "--loop"])


sys.exit(_main(sys.argv[1]))
