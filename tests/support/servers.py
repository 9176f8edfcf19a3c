"""Servers of the PostgreSQL under test, and folders for their data and sockets."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from functions.postgres_server import PostgresServer, embedded_postgres

if TYPE_CHECKING:
    from .container import ContainerServer

# Killed servers are killed as processes; the machine stays up, so nothing needs to reach the disk.
# Autovacuum would change plans at times that no test chooses.
SERVER_OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "jit": "off",
    "max_connections": "100",
    # Shared memory is a file in the data folder: it goes with the folder of a server that was killed.
    "dynamic_shared_memory_type": "mmap",
}
_MEMORY = Path("/dev/shm")
_NEEDED_BYTES = 4 * 2**30
"""Three times the most that a run of all tests takes."""


def new_server(folder: Path) -> PostgresServer:
    """A server of the PostgreSQL under test, not started; the test may configure, stop and kill it."""
    if os.environ.get("TEST_POSTGRES_IMAGE"):
        pytest.skip("needs a PostgreSQL that it may stop and kill, which one in a container is not")
    bin_folder = os.environ.get("TEST_POSTGRES_BIN")
    if bin_folder:
        return PostgresServer(Path(bin_folder), folder, SERVER_OPTIONS)
    return embedded_postgres(folder, SERVER_OPTIONS)


def new_container(image: str) -> ContainerServer:
    """A server in a container, not started."""
    from .container import ContainerServer, missing_engine  # what other tests do not load

    if why := missing_engine():
        pytest.skip(f"no container engine: {why}")
    return ContainerServer(image, SERVER_OPTIONS)


@contextmanager
def short_lived_folder() -> Iterator[Path]:
    """An empty folder that other users may pass through, in memory if there is room, until the end of the block."""
    in_memory = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _NEEDED_BYTES
    # Not pytest's tmp_path: each run of pytest closes the folder above it to all other users, and
    # PostgreSQL runs as another user when the tests run as root.
    with tempfile.TemporaryDirectory(
        prefix="lastcall-test-", dir=_MEMORY if in_memory else None, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)
