"""Read an uploaded file in a process of its own. Only the sender of a hostile file notices its effects: a
workbook of 12 kB can unpack to a row that needs more memory than there is, and all of it is work for the interpreter
that should be answering others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from typing import IO

import msgspec
from anyio.to_thread import run_sync

from .contact_file import ContactFile, FileError, Group, read_contacts
from .log import configure_logging, logger

FILES_AT_ONCE = 2
"""Most files that are read at a time; others wait."""
MAX_MEMORY_BYTES = 1 << 30
"""Most memory of the process that reads a file."""
MAX_CPU_S = 180
"""Most seconds that it computes."""
_NEEDED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
"""The environment variables that an interpreter may need to start."""
_KINDS = ("csv", "xlsx", "xls")


class _Answer(msgspec.Struct):
    """The answer of the process about the file: its groups, whose rows it wrote into the spool, or the error."""

    sha256: str = ""
    groups: list[tuple[int, int, int]] = []
    rows: int = 0
    code: str | None = None
    message: str = ""


async def read_apart(file: IO[bytes], name: str) -> ContactFile:
    """The whole file, as read_contacts gives it. Raises FileError, also for one that takes more than 1 GiB of memory
    or 3 minutes of computing. A request that is cancelled meanwhile leaves no process behind."""
    kind = name.lower().rpartition(".")[2]
    spool = tempfile.TemporaryFile()  # noqa: SIM115
    arguments = (spool.fileno(), MAX_MEMORY_BYTES, MAX_CPU_S)
    try:
        file.seek(0)
        with subprocess.Popen(  # noqa: ASYNC220 - a moment
            [sys.executable, "-m", __name__, f"file.{kind if kind in _KINDS else ''}", *map(str, arguments)],
            stdin=file.fileno(),
            stdout=subprocess.PIPE,
            pass_fds=[spool.fileno()],
            # Nothing of the service's secrets is there to be read.
            env={
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                **{name: os.environ[name] for name in _NEEDED if name in os.environ},
            },
        ) as process:
            try:
                # In a thread: not every event loop hears of the end of a process.
                said, _ = await run_sync(process.communicate, abandon_on_cancel=True)
            finally:
                process.kill()
        if process.returncode < 0:
            raise FileError("file_invalid", "The file takes too long to read: save it as .csv, in parts")
        if process.returncode > 0:
            raise RuntimeError("file not read")  # the process said in the log why
        answer = msgspec.json.decode(said, type=_Answer)
        if answer.code is not None:
            raise FileError(answer.code, answer.message)
    except BaseException:
        spool.close()
        raise
    return ContactFile(answer.sha256, spool, [Group(*group) for group in answer.groups], answer.rows)


def _main(name: str, spool: int, max_memory_bytes: int, max_cpu_s: int) -> None:
    import resource  # only here: not every platform has it

    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (max_cpu_s, max_cpu_s))
    configure_logging()
    warnings.simplefilter("ignore")  # what a library says of a workbook may quote it
    try:
        with open(spool, "wb") as rows:
            contacts = read_contacts(sys.stdin.buffer, name, rows)
            answer = _Answer(
                contacts.sha256,
                [(group.offset, group.size, group.last_row) for group in contacts.groups],
                contacts.rows,
            )
    except FileError as error:
        answer = _Answer(code=error.code, message=str(error))
    except MemoryError:
        answer = _Answer(code="file_invalid", message="The file takes too much memory to read: save it as .csv")
    except Exception:
        logger.exception("file not read")
        sys.exit(1)
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:]))
