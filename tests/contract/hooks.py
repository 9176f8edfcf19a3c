"""The world of Schemathesis: the users and batches that exist, and the signature of a carrier."""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.core import NotSet
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.case import Case
from schemathesis.hooks import HookContext
from schemathesis.transport.serialization import Binary
from urllib3.filepost import encode_multipart_formdata

from tests.support.webhooks import signed_standard

WORLD: dict[str, Any] = json.loads(os.environ["SCHEMATHESIS_WORLD"])

CSV = b"phone_number,first_name,plan\n+15550009999,Grace,gold\n12,,\n"
schemathesis.openapi.format("binary", st.sampled_from([CSV, CSV.replace(b",", b";"), b"phone_number\n12\n"]))
schemathesis.openapi.format("timezone", st.sampled_from(["UTC", "EST", "America/New_York", "Asia/Kolkata"]))
BOUNDARY = "the-end-of-a-part"
TO_BE_SIGNED = "to be signed"  # as schemathesis.toml has it

# Values with which a request succeeds; one of every few requests keeps the values that were made up.
KNOWN: dict[str, list[Any]] = {
    "agent_mapping_id": WORLD["agents"],
    "campaign_id": WORLD["campaigns"],
    "batch_id": WORLD["batches"],
    "agency_id": WORLD["agencies"],
    "import_id": WORLD["imports"],
    "user_id": WORLD["users"],
    "webhook_secret": [WORLD["webhook_secret"]],
    "batchId": [*WORLD["batches"], "64e5f12345abcdef98765432"],
    "userId": [*WORLD["users"], "64e5f12345abcdef12345678"],
    "id": [*WORLD["batches"], "64e5f12345abcdef98765432"],
}
# Values that no request can make up: a made-up one is valid, and refused.
ALWAYS: dict[str, list[Any]] = {
    "from_number": WORLD["numbers"],
    "calling_numbers": [WORLD["numbers"], WORLD["numbers"][:1]],
    "callingNumbers": [WORLD["numbers"], WORLD["numbers"][:1]],
}
# 400 to a request that is as described, for what no schema can say: the state of the batch, and what is in the file.
STATES = (
    "Batch is already ",
    "Only a processing or scheduled batch can be paused",
    "Only a paused or stopped batch can be resumed",
    "The batch has no failed contact that can be called again",
    "No contact is left to call",
    "until must be a time to come",
    "With a batch_id the batch keeps its settings",
    "calling_hours must have a start and another end",
    "page must be at least 1, limit 1 to 100, and both together reach at most 20000",
)


def _draw(values: list[Any], given: Any, *, keep: bool) -> Any:
    """One of the values, or what is given; the same for the same given."""
    place = zlib.crc32(repr(given).encode()) % (len(values) + keep)
    return given if place == len(values) else values[place]


def _settle(fields: Any) -> None:
    """Put what is known in its place. For JSON Schema, 4.0 is a whole number; for the app it is not, as the file
    says."""
    for key, value in list(fields.items() if isinstance(fields, dict) else enumerate(fields)):
        if isinstance(value, float) and value.is_integer():
            fields[key] = int(value)
        elif isinstance(value, dict | list):
            _settle(value)
    if isinstance(fields, dict):
        # Null is a field that is not given.
        given = {name for name, value in fields.items() if value is not None}
        for name in given & KNOWN.keys():
            fields[name] = _draw(KNOWN[name], fields[name], keep=True)
        for name in given & ALWAYS.keys():
            fields[name] = _draw(ALWAYS[name], fields[name], keep=False)


@schemathesis.hook
def map_case(_context: HookContext, case: Case) -> Case:
    """Ask about what is there, where the request is to be a valid one."""
    for location, fields in (
        (ParameterLocation.PATH, case.path_parameters),
        (ParameterLocation.QUERY, case.query),
        (ParameterLocation.BODY, case.body),
    ):
        if isinstance(fields, dict) and case.meta is not None and not case.meta.is_negative_at(location):
            _settle(fields)
    return case


@schemathesis.hook
def before_call(_context: HookContext, case: Case, _kwargs: dict[str, Any]) -> None:
    """Sign an event as the agency's carrier would, if it is to be signed; say where the parts of a form end."""
    if case.headers.get("webhook-signature") == TO_BE_SIGNED and not isinstance(case.body, NotSet | bytes):
        body = json.dumps(case.body)
        webhook_id = f"msg_{zlib.crc32(body.encode())}"
        case.headers.update(signed_standard(WORLD["webhook_secret"], body, webhook_id=webhook_id))
    if case.media_type == "multipart/form-data":
        case.headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"


@schemathesis.serializer("multipart/form-data")
def form(_context: Any, fields: Any) -> bytes:
    """A form as browsers send it: the file with a name, and everything else as text."""
    if not isinstance(fields, dict):
        return json.dumps(fields, default=str).encode()
    parts = [
        (name, ("contacts.csv", _content(value)) if name == "file" and isinstance(value, str | bytes) else _text(value))
        for name, value in fields.items()
        if value is not None  # a form has no null
    ]
    body, _ = encode_multipart_formdata(parts, boundary=BOUNDARY)
    return body


def _content(value: str | bytes) -> bytes:
    """The file that was made up; in the file's example there is its name alone."""
    if isinstance(value, Binary):
        return value.data
    return CSV if value == "contacts.csv" else value if isinstance(value, bytes) else value.encode()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


@schemathesis.check
def valid_requests_are_refused_for_a_state_only(
    _context: schemathesis.CheckContext, response: schemathesis.Response, case: Case
) -> None:
    """A request that is as the file says is not answered that it is not."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 400:
        return
    body = response.json()
    message = body.get("error") or body["errorMessage"]
    assert message.startswith(STATES), f"refused, but as described: {message}"
