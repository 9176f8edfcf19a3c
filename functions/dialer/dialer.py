"""The dialer: it claims contacts in groups, passes start_call as the last step before the carrier, places
what start_call returned and nothing else, and records what became of each call, in groups.

The dialer never looks whether a batch was cancelled or stopped: start_call does. The dialer does not guess: a call
that the carrier may or may not have is unknown until the carrier tells (reconcile).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal
from uuid import UUID

import msgspec

from .._shared.auth import service_caller
from .._shared.database import Database
from .._shared.errors import FunctionError
from .._shared.log import logger
from .._shared.settings import Settings
from .._shared.telemetry import NO_TELEMETRY, Telemetry, current_operation
from .carrier import (
    AccountRefusedError,
    BatchRefusedError,
    Call,
    CallRefusedError,
    CallUnclearError,
    Carrier,
    CarrierUnavailableError,
    Finished,
    InProgress,
    OpenCall,
)
from .lanes import GROUP_WINDOW_S, Connections, Record, Recorder, retry_after_s
from .place_by import CallLateError, PlaceBy

GROUP = 50
"""Most contacts claimed at a time."""
LEASE_S = 30
"""Seconds from a claim in which start_call must come."""
TICK_S = 1.0
"""Seconds between two runs of process_batches and release_expired_leases, and until the next look for what carriers
reported when there was nothing."""
RECONCILE_BATCH = 20
"""Calls that the carrier is asked about at a time."""
MAX_HOLD_S = 60.0
"""Most seconds for which a carrier that takes no calls is left alone."""
RECOVER_S = 0.5
"""Seconds that a loop waits after an error that nobody expected; twice as long after each further one."""
MAX_RECOVER_S = 30.0
"""Most seconds that it waits. After as many without an error it begins anew."""


class DialReport(msgspec.Struct):
    """The calls of a dialer, counted by outcome."""

    batches_processed: int = 0
    """Batches that contacts were claimed of."""
    calls_initiated: int = 0
    """Calls that the carrier took."""
    calls_failed: int = 0
    """Calls that it did not take, or did not say."""

    def reply(self) -> dict[str, Any]:
        """As calls-batch-process answers."""
        if self.batches_processed == 0:
            return {"processed": 0, "message": "No batches to process"}
        return msgspec.structs.asdict(self)


class UnreadableCall(msgspec.Struct, frozen=True):
    """A call that claim_contacts tells in a way that no carrier can be told. reason: for the contact's notes."""

    batch_id: UUID
    call_id: int
    lease: UUID
    reason: str


class Dialer:
    """Dials whatever batch there is."""

    RECORD_WITHIN_S = 5.0
    """Seconds in which what is known must be recorded when the dialer ends."""

    def __init__(
        self, database: Database, carrier: Carrier, settings: Settings, telemetry: Telemetry = NO_TELEMETRY
    ) -> None:
        self._telemetry = telemetry
        self._database = database
        self._carrier = carrier
        self._settings = settings
        self._service = service_caller(settings)
        self._report = DialReport()
        self._batches: set[str] = set()
        self._starts: dict[asyncio.Task[None], int] = {}
        """The claims that wait for start_call, with their numbers of contacts."""
        self._placements: set[asyncio.Task[None]] = set()
        self._refused: set[str] = set()
        """Batches that are stopped, since the carrier takes none of their calls, and were not claimed of since."""
        self._wake = asyncio.Event()
        """Set when there may be something to do at once: batches started, places free, stop."""
        self._connections = Connections(settings.pool_size)
        self._recorder = Recorder(database, self._service, self._connections, telemetry, self._wake.set)
        self._stop: asyncio.Event | None = None
        """Set to end a dialer that runs as a service; a bounded run has none."""
        self._held_until = 0.0
        """Until then, by the monotonic clock, the carrier takes no calls."""
        self._hold_s = 0.0
        self._window = settings.dial_concurrency
        """Most requests to the carrier at a time, fewer after it took none."""

    async def run(self, stop: asyncio.Event) -> None:
        """Dial until stop is set; then claim nothing more, let the requests in flight finish, and record
        them. Waits while the database or the carrier is away, and after whatever else goes wrong."""
        self._stop = stop
        async with self._recording(), asyncio.TaskGroup() as tasks:
            for loop in (
                self._claim_until_stopped,
                self._tick_until_stopped,
                self._apply_webhooks_until_stopped,
                self._end_calls_until_stopped,
                self._reconcile_until_stopped,
            ):
                tasks.create_task(self._go_on(loop))
            await stop.wait()
            self._wake.set()

    async def run_once(self, max_calls: int, deadline_s: float) -> DialReport:
        """Dial at most max_calls, claiming for at most deadline_s; then ask the carrier about some calls whose
        end is not known. Raises 503 when the database is away."""
        end_at = time.monotonic() + deadline_s
        async with self._recording():
            await self._tick()
            await self._end_calls()
            left = max_calls
            while left > 0 and time.monotonic() < end_at and (places := await self._free_slots()):
                claimed = await self._dial(min(left, places))
                if claimed == 0:
                    break
                left -= claimed
            await self._reconcile()
        return self._report

    # Claim, start, place.

    async def _claim_until_stopped(self) -> None:
        assert self._stop is not None
        misses = 0
        while not self._stop.is_set():
            self._wake.clear()
            if (held_s := self._held_until - time.monotonic()) > 0:
                await self._sleep(held_s)
            elif (places := await self._free_slots()) and not self._stop.is_set() and await self._dial(places):
                misses = 0
            else:
                due = await self._call("next_claim_in")
                due_in_s = TICK_S if not due or due[0] is None else due[0]
                if due_in_s == 0:
                    # Others hold the batches that have something: less and less often, and not in step with them.
                    misses += 1
                    due_in_s = min(0.01 * 2 ** min(misses, 10), TICK_S) * random.uniform(0.5, 1)  # noqa: S311
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), min(due_in_s, TICK_S))

    async def _free_slots(self) -> int:
        """Wait for free places, and then a moment for more of them: how many contacts to claim. 0: the
        carrier takes no calls."""
        while self._taken() >= self._window:
            await asyncio.wait({*self._starts, *self._placements}, return_when=asyncio.FIRST_COMPLETED)
        if self._taken() > self._window - GROUP and self._taken():
            await asyncio.sleep(GROUP_WINDOW_S)
        if time.monotonic() < self._held_until:
            return 0
        return max(min(self._window - self._taken(), GROUP), 0)

    def _taken(self) -> int:
        """The places that claimed contacts and requests in flight take."""
        return sum(self._starts.values()) + len(self._placements)

    async def _dial(self, most: int) -> int:
        """Claim a group of a batch, and start it. As a service, go on to claim while start_call waits for the batch's
        row. Returns how many were claimed."""
        with self._telemetry.operation("dial", "dial") as operation:
            claimed = await self._call("claim_contacts", max_contacts=most, lease_seconds=LEASE_S)
            self._telemetry.count("claim", "some" if claimed else "empty")
            if claimed:
                operation.details.update(batch_id=claimed[0]["batch_id"], claimed=len(claimed))
                if self._stop is None:
                    await self._start(claimed)
                else:
                    start = asyncio.create_task(self._start(claimed))
                    self._starts[start] = len(claimed)
                    start.add_done_callback(self._starts.pop)
            operation.is_dropped = not claimed
        return len(claimed)

    async def _start(self, claimed: list[dict[str, Any]]) -> None:
        """Place what start_call lets through of a claim."""
        self._telemetry.count("claimed", number=len(claimed))
        batch_id = claimed[0]["batch_id"]
        self._refused.discard(batch_id)
        self._batches.add(batch_id)
        self._report.batches_processed = len(self._batches)
        calls = {row["call_id"]: _read_call(row) for row in claimed}
        lease = claimed[0]["lease"]
        try:
            async with self._connections.one():
                # From before start_call is asked, so that place_by is over at the latest when the database says so.
                place_by = PlaceBy(self._settings.place_within_s)
                arguments = {
                    "batch_id": batch_id,
                    "call_ids": list(calls),
                    "lease": lease,
                    "place_within_seconds": self._settings.place_within_s,
                }
                # Never again when its answer was lost: it tells each call once.
                (passed,) = await self._database.run(self._service, "start_call", arguments)
        except Exception as error:
            code = error.code if isinstance(error, FunctionError) else type(error).__name__
            level = logger.warning if isinstance(error, FunctionError) else logger.exception
            level("start_call failed", extra={"fields": {"batch_id": batch_id, "code": code}})
            if code == "batch_busy":
                return  # none of them passed, and their leases end
            for call in calls.values():  # whichever of them passed, they were not placed
                self._record_failure(call, "not_placed", counted=False)
            if self._stop is None and code != "batch_not_found":
                raise
            return
        self._telemetry.count("started", number=len(passed["started"]))
        if passed["unknown"]:
            fields = {"batch_id": batch_id, "lease": lease, "call_ids": passed["unknown"]}
            logger.info("claimed calls are gone", extra={"fields": fields})
        for call_id in passed["started"]:
            call = calls[call_id]
            if isinstance(call, UnreadableCall):
                self._record_failure(call, "not_placed", counted=True, notes=call.reason)
                continue
            placement = asyncio.create_task(self._place(call, place_by))
            self._placements.add(placement)
            placement.add_done_callback(self._placements.discard)

    async def _place(self, call: Call, place_by: PlaceBy) -> None:
        batch_id = str(call.batch_id)
        with self._telemetry.operation("place", "place", batch_id=batch_id, call_id=call.call_id) as operation:
            try:
                answer = await self._request(call, place_by)
            except CallLateError:
                operation.outcome = "late"
                self._record_failure(call, "not_placed", counted=False)
            except CarrierUnavailableError as error:
                operation.outcome = "unavailable"
                self._hold(error)
                self._record_failure(call, "carrier_unavailable", counted=False)
            except BatchRefusedError as error:
                operation.outcome = "refused"
                self._record_failure(call, "carrier_refused", counted=False)
                await self._stop_batch(batch_id, str(error))
            except CallRefusedError as error:
                operation.outcome = "refused"
                logger.warning("call refused", extra={"fields": {"call_id": call.call_id, "reason": str(error)}})
                self._record_failure(call, "carrier_refused", counted=True)
            except Exception as error:  # whatever it is, it does not say that the carrier has no such call
                operation.outcome = "unknown"
                level = logger.warning if isinstance(error, CallUnclearError) else logger.exception
                level("call unclear", extra={"fields": {"call_id": call.call_id, "reason": str(error)}})
                self._report.calls_failed += 1
                self._record("finish_call", call, {"status": "unknown"})
            else:
                operation.outcome = _carrier_outcome(answer)
                self._report.calls_initiated += 1
                self._hold_s = 0.0
                self._window = min(2 * self._window, self._settings.dial_concurrency)
                self._record_answer(call, answer)

    async def _request(self, call: Call, place_by: PlaceBy) -> InProgress | Finished:
        """Ask the carrier to place a call, for request_limit_s at most. A carrier's own timeouts are each for a part of
        a request, so that all of them together have no end."""
        try:
            async with asyncio.timeout(self._settings.request_limit_s):
                return await self._carrier.place(call, place_by)
        except TimeoutError as error:
            raise CallUnclearError("the request took too long") from error

    def _hold(self, error: CarrierUnavailableError) -> None:
        """Leave the carrier alone for a while, longer each time, and begin with a single call then."""
        now = time.monotonic()
        if now >= self._held_until:
            self._hold_s = min(max(2 * self._hold_s, error.retry_after_s), MAX_HOLD_S)
            self._telemetry.count("hold")
            fields = {"reason": str(error), "hold_s": self._hold_s}
            if isinstance(error, AccountRefusedError):
                logger.error("carrier refuses every call: check its settings and account", extra={"fields": fields})
            else:
                logger.warning("carrier unavailable", extra={"fields": fields})
        self._held_until = max(self._held_until, now + max(self._hold_s, error.retry_after_s))
        self._window = 1

    async def _stop_batch(self, batch_id: str, reason: str) -> None:
        """Stop a batch of which the carrier takes no call, once for all calls of a claim."""
        if batch_id in self._refused:
            return
        self._refused.add(batch_id)
        fields = {"batch_id": batch_id, "reason": reason}
        logger.error("batch refused: it is stopped", extra={"fields": fields})
        try:
            await self._database.run(self._service, "stop_batch", {"batch_id": batch_id, "reason": reason})
        except Exception:
            logger.exception("batch not stopped", extra={"fields": fields})
            self._refused.discard(batch_id)  # the next call that is refused tries again

    # Record what became of calls.

    def _record(self, procedure: str, call: Call | OpenCall | UnreadableCall, result: dict[str, Any]) -> None:
        named = {"call_id": call.call_id, "lease": call.lease and str(call.lease), **result}
        self._recorder.add(str(call.batch_id), Record(procedure, named, current_operation()))

    def _record_answer(self, call: Call | OpenCall, answer: InProgress | Finished) -> None:
        procedure = "confirm_call" if isinstance(answer, InProgress) else "finish_call"
        self._record(procedure, call, msgspec.structs.asdict(answer))

    def _record_failure(
        self, call: Call | UnreadableCall, outcome: str, *, counted: bool, notes: str | None = None
    ) -> None:
        self._report.calls_failed += 1
        self._record("finish_call", call, {"status": "failed", "outcome": outcome, "counted": counted, "notes": notes})

    @asynccontextmanager
    async def _recording(self) -> AsyncIterator[None]:
        """Record what becomes of calls; at the end, let the requests in flight finish, and record them too."""
        try:
            yield
        finally:
            within_s = self._settings.carrier_timeout_s + GROUP_WINDOW_S
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    while tasks := {*self._starts, *self._placements}:
                        await asyncio.wait(tasks)
            await self._recorder.drain(self.RECORD_WITHIN_S)
            left = [*self._starts, *self._placements]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    # Keep things moving.

    async def _tick_until_stopped(self) -> None:
        assert self._stop is not None
        while not self._stop.is_set():
            await self._tick()
            self._wake.set()
            await self._sleep(TICK_S)

    async def _apply_webhooks_until_stopped(self) -> None:
        assert self._stop is not None
        while not self._stop.is_set():
            (done, *_) = await self._call("process_webhook_queue") or [{"processed": 0}]
            self._telemetry.count("webhook", "applied", done["processed"])
            self._telemetry.count("webhook", "failed", done.get("failed", 0))
            if done["processed"]:
                self._wake.set()  # calls that ended have left their places
            else:
                await self._sleep(TICK_S)

    async def _tick(self) -> None:
        await self._call("release_expired_leases")
        await self._call("process_batches")

    async def _reconcile_until_stopped(self) -> None:
        assert self._stop is not None
        while not self._stop.is_set():
            while await self._reconcile() == RECONCILE_BATCH and not self._stop.is_set():
                pass
            await self._sleep(self._settings.reconcile_every_s)

    async def _reconcile(self) -> int:
        """Ask the carrier about some calls whose end is not known. Returns how many."""
        if time.monotonic() < self._held_until:
            return 0
        listed = await self._call(
            "list_open_calls", older_than_seconds=self._settings.reconcile_after_s, max_calls=RECONCILE_BATCH
        )
        await asyncio.gather(*(self._ask("find", call) for call in _read_open_calls(listed)))
        return len(listed)

    async def _end_calls_until_stopped(self) -> None:
        assert self._stop is not None
        while not self._stop.is_set():
            while await self._end_calls() == RECONCILE_BATCH and not self._stop.is_set():
                pass
            await self._sleep(TICK_S)

    async def _end_calls(self) -> int:
        """Tell the carrier of some calls that it has to end, also while it is left alone. Returns how many."""
        listed = await self._call("list_calls_to_end", max_calls=RECONCILE_BATCH)
        await asyncio.gather(
            *(self._ask("hang_up" if call.hang_up else "withdraw", call) for call in _read_open_calls(listed))
        )
        return len(listed)

    async def _ask(self, request: Literal["find", "withdraw", "hang_up"], call: OpenCall) -> None:
        """Make this request to the carrier about a call, and record what the carrier knows then."""
        with self._telemetry.operation(
            request, request, batch_id=str(call.batch_id), call_id=call.call_id
        ) as operation:
            try:
                found = await getattr(self._carrier, request)(call)
            except CarrierUnavailableError as error:
                operation.outcome = "unavailable"
                self._hold(error)
            except Exception as error:  # as in _place: it says nothing of the call
                operation.outcome = "refused" if isinstance(error, CallRefusedError) else "unknown"
                level = logger.warning if isinstance(error, (CallRefusedError, CallUnclearError)) else logger.exception
                fields = {"call_id": call.call_id, "request": request, "reason": str(error)}
                level("the carrier tells nothing of a call", extra={"fields": fields})
            else:
                operation.outcome = _carrier_outcome(found)
                known = (
                    InProgress(call.carrier_call_id, call.carrier_queued) if call.carrier_call_id is not None else None
                )
                if found == known and found is not None and call.status == "in_progress":
                    return
                if found is not None:
                    self._record_answer(call, found)
                elif call.age_seconds >= self._settings.reconcile_after_s:
                    missing = {"status": "missing", "carrier_call_id": call.carrier_call_id}
                    self._record("finish_call", call, missing)

    # Code shared by these loops.

    async def _go_on(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop until stop is set: log whatever it raises, wait, and begin it again."""
        assert self._stop is not None
        wait_s = RECOVER_S
        while not self._stop.is_set():
            began_at = time.monotonic()
            try:
                await loop()
            except Exception:
                if time.monotonic() - began_at > MAX_RECOVER_S:
                    wait_s = RECOVER_S
                logger.exception("dialer goes on after an error", extra={"fields": {"wait_s": wait_s}})
                await self._sleep(wait_s)
                wait_s = min(2 * wait_s, MAX_RECOVER_S)

    async def _call(self, procedure: str, **arguments: Any) -> list[Any]:
        while True:
            try:
                return await self._database.run(self._service, procedure, arguments)
            except FunctionError as error:
                await self._let_recover(error)
                if self._stop is None or self._stop.is_set():
                    return []

    async def _let_recover(self, error: FunctionError) -> None:
        """Wait while the database is away, as a service. Raises the error otherwise."""
        if error.status != 503 or self._stop is None:
            raise error
        logger.warning("database away", extra={"fields": {"code": error.code}})
        await self._sleep(retry_after_s(error))

    async def _sleep(self, seconds: float) -> None:
        """Until stop is set, at most."""
        assert self._stop is not None
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)


def _read_call(row: dict[str, Any]) -> Call | UnreadableCall:
    try:
        return msgspec.convert(row, Call)
    except msgspec.ValidationError as error:
        fields = {"batch_id": row["batch_id"], "contact_id": row["contact_id"], "reason": str(error)}
        logger.warning("contact cannot be read", extra={"fields": fields})
        return UnreadableCall(
            UUID(row["batch_id"]), row["call_id"], UUID(row["lease"]), f"The contact cannot be read: {error}"
        )


def _read_open_calls(rows: list[dict[str, Any]]) -> Iterator[OpenCall]:
    """Yield the rows that can be read, and log the others."""
    for row in rows:
        try:
            yield msgspec.convert(row, OpenCall)
        except msgspec.ValidationError as error:
            fields = {"batch_id": row["batch_id"], "call_id": row["call_id"], "reason": str(error)}
            logger.warning("open call cannot be read", extra={"fields": fields})


def _carrier_outcome(answer: InProgress | Finished | None) -> str:
    if answer is None:
        return "missing"
    return "taken" if isinstance(answer, InProgress) else "ended"
