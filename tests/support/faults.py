"""Procedures and commits that fail as often as a test says."""

from __future__ import annotations

from .database import TestDatabase


def fails_at_first(db: TestDatabase, sqlstate: str, times: int) -> None:
    """A procedure that raises the first `times` times, and returns which try it was."""
    db.rows("create sequence tries")
    db.rows("grant usage on sequence tries to authenticated")
    db.rows(
        f"""
        create function public.try_it() returns table (try bigint, ok boolean) language plpgsql as $$
        begin
          try := nextval('public.tries');
          if try <= {times} then
            raise sqlstate '{sqlstate}' using message = 'try again';
          end if;
          ok := true;
          return next;
        end $$
        """
    )


def at_commit(db: TestDatabase, sqlstate: str, times: int) -> None:
    """Let the commits of the first `times` changes of a batch fail."""
    db.rows("create sequence commits")
    db.rows(
        f"""
        create function public.at_commit() returns trigger language plpgsql security definer as $$
        begin
          if nextval('public.commits') <= {times} then
            raise sqlstate '{sqlstate}' using message = 'not committed';
          end if;
          return null;
        end $$
        """
    )
    db.rows(
        "create constraint trigger at_commit after update on call_batches deferrable initially deferred"
        " for each row execute function at_commit()"
    )
