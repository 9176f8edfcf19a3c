"""A PostgreSQL in a container, by testcontainers: what users have who have Docker."""

from __future__ import annotations

import gc
import warnings
from contextlib import closing

import docker
from docker.errors import DockerException
from testcontainers.community.postgres import PostgresContainer


def missing_engine() -> str | None:
    """Why there is no container engine here, if there is none."""
    why = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # docker does not close what it could not connect
        try:
            with closing(docker.from_env()) as client:
                client.ping()
        except DockerException as error:
            why = str(error)
        gc.collect()
    return why


class ContainerServer:
    """A server of an image that behaves as the official one. It cannot be configured, killed or started again."""

    def __init__(self, image: str, options: dict[str, str]) -> None:
        self._container = PostgresContainer(image, username="postgres", dbname="postgres")
        # Published on the loopback interface, to whoever is on this machine: as with any test database.
        self._container.with_env("POSTGRES_HOST_AUTH_METHOD", "trust")
        settings = " ".join(f"-c {name}={value}" for name, value in options.items())
        self._container.with_command(f"postgres {settings}")

    def uri(self, database: str = "postgres", user: str = "postgres") -> str:
        """The libpq URI of a database of this server."""
        host, port = self._container.get_container_host_ip(), self._container.get_exposed_port(5432)
        return f"postgresql://{user}@{host}:{port}/{database}"

    def start(self) -> None:
        self._container.start()

    def stop(self) -> None:
        self._container.stop()
