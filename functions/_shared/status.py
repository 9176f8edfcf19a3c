"""The statuses of batches and contacts, as the core's types name them."""

from __future__ import annotations

from typing import Literal

BatchStatus = Literal["pending", "scheduled", "processing", "paused", "stopped", "completed", "failed", "cancelled"]
ContactStatus = Literal["pending", "scheduled", "queued", "in_progress", "completed", "failed", "skipped"]
