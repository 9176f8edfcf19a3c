"""How long an import takes, against the bare COPY of the same rows."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from uuid import uuid4

import httpx2

from ..support.command import serve
from ..support.tokens import SECRET, bearer
from .batches import Batch, load_core
from .lab import Lab, Measurement, progress
from .report import milliseconds, ratio, table, whole

_HEADER = ["phone_number", "first_name", "last_name", "email", "plan", "account_id"]
_CONTACTS = "campaign_contacts (agency_id, batch_id, id, phone_number)"
_DATA = "contact_data (agency_id, batch_id, contact_id, first_name, last_name, email, custom_data)"
_AT_ONCE = 10_000
"""Most contacts that create_batch takes."""


def run(lab: Lab, sizes: Sequence[int], runs: int) -> str:
    """The table of all sizes: COPY, the import of a CSV over HTTP, and create_batch where it takes so many."""
    rows = []
    for size in sizes:
        copied, created, imported, peaks = [], [], [], []
        for turn in range(runs):
            progress(f"import of {size:,}, run {turn + 1}")
            copied.append(_copy(lab, size))
            if size <= _AT_ONCE:
                created.append(_create(lab, size))
            measurement, peak = _import(lab, size)
            imported.append(measurement)
            peaks.append(peak)
        copy = median(m.seconds for m in copied)
        seconds = median(m.seconds for m in imported)
        rows.append(
            [
                whole(size),
                milliseconds(copy),
                milliseconds(median(m.seconds for m in created)) if created else "",
                milliseconds(seconds),
                ratio(seconds / copy),
                whole(size / seconds),
                whole(max(peaks) / 2**20),
            ]
        )
    return table(
        "Import",
        "A CSV of contacts with three known columns and two of their own: the bare COPY of the finished rows into "
        "campaign_contacts and contact_data, create_batch with the same as JSON, and the whole calls-batch-import "
        f"from request to reply; medians of {runs} runs. The peak is the resident memory of the serving process.",
        ["contacts", "COPY", "create_batch", "import", "import to COPY", "contacts/s", "peak MiB"],
        rows,
    )


def _row(i: int) -> tuple[str, str, str, str, str, str]:
    return f"+1555{i:07d}", "Ada", "Lovelace", f"ada{i}@example.com", "gold", str(i)


def _fresh(lab: Lab) -> tuple[Batch, dict[str, str]]:
    """An empty batch, and what another one is created with."""
    (batch,) = load_core(lab, [0])
    agent, campaign = uuid4(), uuid4()
    for insert, values in (
        ("agent_mappings (agency_id, id, ultravox_agent_id) values (%s, %s, 'agent')", [batch.agency_id, agent]),
        ("campaigns (agency_id, id, name) values (%s, %s, 'Spring')", [batch.agency_id, campaign]),
        ("agency_phone_numbers (agency_id, phone_number, status) values (%s, '+15551234567', 'active')",
         [batch.agency_id]),
    ):  # fmt: skip
        lab.owner.execute(f"insert into {insert}".encode(), values)
    lab.settle("campaign_contacts", "contact_data", "call_batches")
    calling = {"agent_mapping_id": str(agent), "campaign_id": str(campaign), "from_number": "+15551234567"}
    return batch, calling


def _copy(lab: Lab, size: int) -> Measurement:
    batch, _ = _fresh(lab)

    def work() -> int:
        with lab.owner.transaction(), lab.owner.cursor() as cursor:
            with cursor.copy(f"copy {_CONTACTS} from stdin".encode()) as copy:
                for i in range(size):
                    copy.write_row((batch.agency_id, batch.id, i, _row(i)[0]))
            with cursor.copy(f"copy {_DATA} from stdin".encode()) as copy:
                for i in range(size):
                    _, first, last, email, plan, account = _row(i)
                    custom = json.dumps({"plan": plan, "account_id": account})
                    copy.write_row((batch.agency_id, batch.id, i, first, last, email, custom))
        return size

    return lab.measure(work)


def _create(lab: Lab, size: int) -> Measurement:
    _, calling = _fresh(lab)
    contacts = json.dumps(
        [
            {**dict(zip(_HEADER[:4], row, strict=False)), "custom_data": dict(zip(_HEADER[4:], row[4:], strict=True))}
            for row in map(_row, range(size))
        ]
    )
    query = b"select (create_batch(%s, %s, %s, %s)).total_contacts"
    values = [calling["agent_mapping_id"], calling["from_number"], calling["campaign_id"], contacts]

    def work() -> int:
        row = lab.owner.execute(query, values).fetchone()
        assert row is not None
        return int(row[0])

    return lab.measure(work)


def _import(lab: Lab, size: int) -> tuple[Measurement, int]:
    """The import and the peak of the serving process, in bytes."""
    batch, calling = _fresh(lab)
    settings = {"DATABASE_URL": lab.service_uri, "SUPABASE_JWT_SECRET": SECRET}
    with tempfile.TemporaryDirectory(prefix="lastcall-bench-") as folder, serve(Path(folder), settings) as service:
        path = Path(folder) / "contacts.csv"
        with path.open("w", newline="") as text:
            csv.writer(text).writerows([_HEADER, *(_row(i) for i in range(size))])

        def work() -> int:
            with path.open("rb") as file:
                response = httpx2.post(
                    f"{service.url}/functions/v1/calls-batch-import",
                    data=calling,
                    files={"file": ("contacts.csv", file)},
                    headers=bearer(batch.user_id),
                    timeout=None,
                )
            assert response.status_code == 201, response.text
            return int(response.json()["added"])

        measurement = lab.measure(work)
        status = Path(f"/proc/{service.process.pid}/status").read_text()
    assert measurement.contacts == size
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return measurement, int(peak.split()[1]) * 1024
