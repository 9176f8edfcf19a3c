"""The functions by one server or another: python -m tests.benchmarks.server SERVER LOOP PARSER WORKERS PORT"""

from __future__ import annotations

import socket
import sys


def main(server: str, loop: str, parser: str, workers: int, port: int) -> None:
    if server == "granian":
        from granian import Granian
        from granian.constants import Interfaces, Loops

        Granian(
            "functions.app:app", port=port, interface=Interfaces.ASGI, workers=workers, loop=Loops(loop),
            log_enabled=False,
        ).serve()  # fmt: skip
        return
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    listening = socket.create_server(("127.0.0.1", port), backlog=2048)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `lastcall serve` does
    config = uvicorn.Config(
        "functions.app:app", loop=loop, http=parser, workers=workers, log_config=None, access_log=False
    )
    if workers > 1:
        Multiprocess(config, sockets=[listening]).run()
    else:
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:4], workers=int(sys.argv[4]), port=int(sys.argv[5]))
