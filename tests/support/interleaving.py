"""Two sessions whose steps run in a given order, as PostgreSQL's own isolation tests run theirs."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg

from .database import Connection, TestDatabase

_PATIENCE_S = 60


@dataclass
class Step:
    """A statement of a session, and what became of it: its rows, or its sqlstate."""

    query: str
    values: dict[str, Any]
    done: threading.Event = field(default_factory=threading.Event)
    answer: Any = None

    def run(self, connection: Connection) -> None:
        try:
            cursor = connection.execute(self.query, self.values)
            self.answer = cursor.fetchall() if cursor.description else None
        except psycopg.Error as error:
            self.answer = error.sqlstate
        self.done.set()


class Session:
    """A connection that runs one step after the other in a thread of its own."""

    def __init__(self, db: TestDatabase) -> None:
        self.connection = db.connect()
        self.connection.execute(f"set lock_timeout = '{_PATIENCE_S}s'")
        self.pid = self.connection.info.backend_pid
        self.current: Step | None = None
        self._steps: queue.Queue[Step | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while (step := self._steps.get()) is not None:
            step.run(self.connection)

    @property
    def is_waiting(self) -> bool:
        return self.current is not None and not self.current.done.is_set()

    def begin(self, step: Step) -> None:
        self.current = step
        self._steps.put(step)

    def close(self) -> None:
        self._steps.put(None)
        self._thread.join()
        self.connection.close()


class Stage:
    """Two sessions and an observer, for one schedule after the other."""

    def __init__(self, db: TestDatabase) -> None:
        self._sessions = (Session(db), Session(db))
        self._observer = db.connect()

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self._observer.close()

    def begin(self, isolation: str) -> None:
        """Begin a transaction in both sessions."""
        for session in self._sessions:
            session.connection.execute(f"begin isolation level {isolation}")

    def end(self) -> None:
        """Undo what a session has not committed."""
        for session in self._sessions:
            session.connection.rollback()

    def play(self, scripts: tuple[list[Step], list[Step]], schedule: tuple[int, ...]) -> None:
        """Run the steps of both sessions, whose turns the schedule gives. A session that waits for a lock has its turn
        when it goes on."""
        left = (list(scripts[0]), list(scripts[1]))
        owed: list[int] = []
        for turn in schedule:
            owed.append(turn)
            owed = self._run_what_can(left, owed)
        deadline = time.monotonic() + _PATIENCE_S
        while owed or any(session.is_waiting for session in self._sessions):
            assert time.monotonic() < deadline, "a step never ends"
            self._settle()
            owed = self._run_what_can(left, owed)

    def _run_what_can(self, left: tuple[list[Step], list[Step]], owed: list[int]) -> list[int]:
        """Run the turns whose session does not wait; returns the others."""
        still_owed = []
        for turn in owed:
            session = self._sessions[turn]
            if session.is_waiting:
                still_owed.append(turn)
                continue
            session.begin(left[turn].pop(0))
            self._settle()
        return still_owed

    def _settle(self) -> None:
        """Wait until each session has done its step or waits for a lock."""
        deadline = time.monotonic() + _PATIENCE_S
        for session in self._sessions:
            while session.is_waiting and not self._is_blocked(session):
                assert time.monotonic() < deadline, "a step neither ends nor waits"
                assert session.current is not None
                session.current.done.wait(0.001)

    def _is_blocked(self, session: Session) -> bool:
        row = self._observer.execute(
            "select cardinality(pg_blocking_pids(%s)) > 0 as is_blocked", [session.pid]
        ).fetchone()
        assert row is not None
        return bool(row["is_blocked"])


def schedules(first: int, second: int) -> Iterator[tuple[int, ...]]:
    """Every order of so many steps of one session and so many of the other."""
    for places in itertools.combinations(range(first + second), first):
        yield tuple(0 if place in places else 1 for place in range(first + second))
