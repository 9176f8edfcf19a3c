"""The real app, asked whatever functions/openapi.yaml allows and forbids, by Schemathesis.

SCHEMATHESIS_EXAMPLES: the most requests for an operation in a phase that makes them up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.database import TestDatabase
from ..support.serving import serving
from ..support.simulator import simulated
from ..support.tokens import token
from ..support.webhooks import Carrier

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "20")
SERVICE = "a secret of the service, of at least 32 bytes"
OWNER = "5eed0000-0000-4000-8000-0000000000a1"
AGENCY = "5eed0000-0000-4000-8000-00000000000a"


def a_world(db: TestDatabase) -> dict[str, Any]:
    """The seed's agency, which the file's examples are about; a batch of every status; and what may be asked for."""
    db.owner.execute((ROOT / "supabase" / "seed.sql").read_bytes())
    db.rows("delete from private.rate_limits")
    agency, owner = UUID(AGENCY), UUID(OWNER)
    number = "+15551234568"
    db.rows(
        "insert into agency_phone_numbers (agency_id, phone_number, status) values (%s, %s, 'active')", agency, number
    )
    batches = []
    for status in ("pending", "scheduled", "processing", "paused", "stopped", "completed", "failed", "cancelled"):
        batch = db.batch(agency, owner, status=status)
        db.contacts(batch, completed=2, failed=3, skipped=1)
        batches.append(str(batch))
    return {
        "agencies": [AGENCY],
        "agents": ["5eed0000-0000-4000-8000-0000000000c1"],
        "campaigns": ["5eed0000-0000-4000-8000-0000000000d1"],
        "numbers": ["+15551234567", number],
        "users": [OWNER],
        "batches": ["5eed0000-0000-4000-8000-0000000000b1", *batches],
        "imports": [an_import(db, agency, batches[0])],
        "webhook_secret": Carrier(db, agency).secret,
    }


def an_import(db: TestDatabase, agency: UUID, batch: str) -> str:
    """One with an invalid row."""
    id_ = db.value(
        "insert into batch_imports (agency_id, batch_id, file_hash, max_attempts) values (%s, %s, %s, 3) returning id",
        agency,
        batch,
        "0" * 64,
    )
    db.rows(
        "insert into import_errors (agency_id, import_id, row_number, phone_number, error)"
        " values (%s, %s, 2, '12', 'no number')",
        agency,
        id_,
    )
    return str(id_)


@pytest.mark.long
@pytest.mark.one_postgres
@pytest.mark.timeout(1200)
def test_the_app_does_what_the_file_says(db: TestDatabase, settings: Settings, tmp_path: Path) -> None:
    world = a_world(db)
    with simulated(answer_at_end=True) as carrier:
        app = create_app(replace(settings, cron_secret=SERVICE, carrier="simulator", carrier_url=carrier))
        with serving(app) as (host, port):
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "schemathesis.cli", "--config-file", HERE / "schemathesis.toml", "run"),
                    *(f"http://{host}:{port}/openapi.yaml", "--max-examples", EXAMPLES),
                ],
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "SCHEMATHESIS_WORLD": json.dumps(world),
                    "SCHEMATHESIS_USER": token(OWNER),
                    "SCHEMATHESIS_SERVICE": SERVICE,
                },
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
    assert done.returncode == 0, done.stdout
