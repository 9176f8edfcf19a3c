"""The two ways to end calls that `lastcall prove` can race: the core's, and the usual edge function's (edge.py)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from .world import Batch, Row, Session

CLAIMED_WITHIN_S = 0.1


def wait_for_claim(session: Session, batches: Sequence[Batch]) -> None:
    """Wait until a dialer has claimed contacts of one of the batches and not started them, for a moment at most."""
    give_up_at = time.monotonic() + CLAIMED_WITHIN_S
    ids = [batch.id for batch in batches]
    while time.monotonic() < give_up_at and not session.rows(
        "select from call_batches where id = any (%s::uuid[]) and queued > 0", ids
    ):
        pass


@dataclass(frozen=True, kw_only=True)
class End:
    """A request to end calls. scope: batch, contacts, number, campaign, agent, caller_number or agency."""

    what: str
    """cancel, stop, pause, skip, opt_out or hold."""
    scope: str
    id: str
    """The id of the scope: the batch's for batch and contacts, a phone number for number and caller_number."""
    agency: str
    contacts: Sequence[int] = ()

    def reaches(self, batch: Batch) -> bool:
        """Whether the batch is in the scope."""
        if self.scope in ("batch", "contacts"):
            return batch.id == self.id
        return batch.agency == self.agency and (
            self.scope in ("agency", "number") or getattr(batch, self.scope) == self.id
        )


class Way(Protocol):
    """How calls are ended, and how they begin again. Each method returns the reply. Raises psycopg.Error."""

    def prepare(self, end: End, batches: Sequence[Batch]) -> None:
        """Wait for the moment at which the end is worth a race."""

    def end(self, end: End) -> Row:
        """End calls."""

    def resume(self, batch: str) -> Row:
        """Go on with a batch that was paused or stopped."""

    def lift(self, end: End, reply: Row) -> Row:
        """Lift a hold. reply: that of the hold."""

    def is_silent(self, batches: Sequence[Batch]) -> bool | None:
        """Whether no call of these batches, which were ended, can start any more; None: nothing tells."""


class CoreWay:
    """One procedure of the core each."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def prepare(self, end: End, batches: Sequence[Batch]) -> None:  # noqa: ARG002 - the batches say it
        """Wait for a claim: an end that comes between the claim and the carrier has the hardest race."""
        wait_for_claim(self._session, batches)

    def end(self, end: End) -> Row:
        if end.what == "hold":
            return self._hold(end)
        queries: dict[str, tuple[str, list[Any]]] = {
            "cancel": ("select * from cancel_batch(%s::uuid)", [end.id]),
            "stop": ("select * from stop_batch(%s)", [end.id]),
            "pause": ("select * from pause_batch(%s::uuid)", [end.id]),
            "skip": (
                "select * from skip_contacts(%s::uuid, contact_ids => %s::text[])",
                [end.id, [str(contact) for contact in end.contacts]],
            ),
            "opt_out": ("select * from opt_out(phone_number => %s, agency_id => %s::uuid)", [end.id, end.agency]),
        }
        query, arguments = queries[end.what]
        return self._session.row(query, *arguments)

    def _hold(self, end: End) -> Row:
        scope, value = {
            "campaign": ("campaign_id => %s::uuid", end.id),
            "agent": ("agent_mapping_id => %s::uuid", end.id),
            "caller_number": ("from_number => %s", end.id),
            "agency": ("whole_agency => %s", True),
        }[end.scope]
        agency: Any = UUID(end.agency)
        return self._session.row(f"select * from hold_calls({scope}, agency_id => %s)", value, agency)  # noqa: S608

    def resume(self, batch: str) -> Row:
        return self._session.row("select * from resume_batch(%s::uuid)", batch)

    def lift(self, end: End, reply: Row) -> Row:  # noqa: ARG002 - the reply names the hold
        return self._session.row("select * from lift_hold(%s)", reply["hold_id"])

    def is_silent(self, batches: Sequence[Batch]) -> bool | None:
        row = self._session.row(
            "select coalesce(sum((batch_silence(b.id)).calls_starting), 0) as starting"
            "  from unnest(%s::text[]) as b (id)",
            [batch.id for batch in batches],
        )
        return bool(row["starting"] == 0)
