"""One process of the demo: `python -m functions.demo serve|carrier|dialer`.

It ends when its stdin does, hence with the demo, however that ends: nothing is left behind by a kill -9.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def _end_with_stdin() -> None:
    # Not sys.stdin: its lock would be held, by a thread that never returns, when the interpreter ends.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _main(kind: str) -> int:
    threading.Thread(target=_end_with_stdin, daemon=True).start()
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
