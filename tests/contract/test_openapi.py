"""functions/openapi.yaml says what the code does, and says all of it. Every test compares its answers with it
(tests/conftest.py), and test_schemathesis.py its requests."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.datastructures import Headers
from starlette.routing import Route

from functions import (
    calls_batch_add_contacts,
    calls_batch_create,
    calls_batch_events,
    calls_batch_export,
    calls_batch_get,
    calls_batch_import,
    calls_batch_list,
    calls_batch_retry,
    calls_batch_silence,
    calls_batch_skip,
    calls_hold,
    calls_hold_lift,
    calls_hold_list,
    calls_opt_out,
    get_user_batch,
    list_user_batches,
    start_calling,
    stop_calling,
    webhook_ingest,
)
from functions._shared.batch import ChangeBatch
from functions._shared.ending import EndBatch
from functions._shared.http import EdgeFunction
from functions.app import ROUTES
from functions.calls_batch_cancel import CancelBatch

from ..support.openapi import METHODS, PREFIX, Object, api, operations, resolve, shape, validator, wrong_with

ROOT = Path(__file__).parent.parent.parent
FUNCTIONS: dict[str, EdgeFunction] = {route.path: route.endpoint for route in ROUTES}
OPERATIONS = {operation["operationId"]: (path, method, operation) for path, method, operation in operations()}
EACH = pytest.mark.parametrize("name", OPERATIONS)

ASKED: dict[str, list[type]] = {
    "calls-batch-cancel": [CancelBatch],
    "calls-batch-pause": [EndBatch],
    "calls-batch-resume": [ChangeBatch],
    "stop-calling": [stop_calling.StopCalling],
    "start-calling": [start_calling.StartCalling],
    "calls-batch-create": [calls_batch_create.CreateBatch],
    "calls-batch-add-contacts": [calls_batch_add_contacts.AddContacts],
    "calls-batch-import": [calls_batch_import.ImportTarget, calls_batch_import.ImportOptions],
    "calls-batch-import-errors": [calls_batch_import.ImportErrors],
    "calls-batch-retry": [calls_batch_retry.RetryBatch],
    "calls-batch-list": [calls_batch_list.ListBatches],
    "calls-batch-get": [calls_batch_get.GetBatch],
    "calls-batch-events": [calls_batch_events.ListBatchEvents],
    "calls-batch-skip": [calls_batch_skip.SkipContacts],
    "calls-hold": [calls_hold.HoldCalls],
    "calls-hold-lift": [calls_hold_lift.LiftHold],
    "calls-hold-list": [calls_hold_list.ListHolds],
    "calls-opt-out": [calls_opt_out.OptOut],
    "calls-batch-silence": [calls_batch_silence.BatchSilence],
    "calls-batch-export": [calls_batch_export.ExportContacts],
    "list-user-batches": [list_user_batches.ListUserBatches],
    "get-user-batch": [get_user_batch.GetUserBatch],
    "webhook-ingest": [webhook_ingest.IngestWebhook],
    "webhook-ingest-by-secret": [webhook_ingest.IngestWebhook],
}
"""The parts of a request that each function reads: its body's fields, or its path and query. Others read nothing."""


# The file itself.


def test_the_file_is_valid_openapi() -> None:
    assert list(OpenAPIV31SpecValidator(api()).iter_errors()) == []


def test_the_file_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert api()["info"]["version"] == project["version"]


def test_each_definition_of_the_file_is_used() -> None:
    used = {reference.rpartition("#/components/")[2] for reference in _values(api(), "$ref")}
    defined = {f"{kind}/{name}" for kind, named in api()["components"].items() for name in named}
    # No operation answers with the first; the others are used by their names.
    unused = {"responses/NoSuchFunction"} | {name for name in defined if name.startswith("securitySchemes/")}
    assert defined - used == unused
    assert used <= defined


def test_links_lead_to_operations() -> None:
    links = [resolve(link) for found in _values(api(), "links") for link in found.values() if "responses" not in found]
    assert {link["operationId"] for link in links} <= OPERATIONS.keys()


def _examples(given: Any, place: str = "") -> Iterator[tuple[str, Object, Any]]:
    """Each example in the file, with the schema that it is of."""
    if isinstance(given, dict):
        schema = given.get("schema")
        if isinstance(schema, dict) and "example" in given:
            yield place, schema, given["example"]
        if isinstance(schema, dict) and isinstance(given.get("examples"), dict):
            for name, example in given["examples"].items():
                yield f"{place}/{name}", schema, example["value"]
        for key, value in given.items():
            if key not in ("example", "examples"):
                yield from _examples(value, f"{place}/{key}")


EXAMPLES = list(_examples(api()))


@pytest.mark.parametrize(("schema", "example"), [e[1:] for e in EXAMPLES], ids=[e[0] for e in EXAMPLES])
def test_an_example_is_as_its_schema_says(schema: Object, example: Any) -> None:
    assert [error.message for error in validator(schema).iter_errors(example)] == []


@EACH
def test_every_answer_with_a_json_body_has_an_example(name: str) -> None:
    for status, reference in OPERATIONS[name][2]["responses"].items():
        content = resolve(reference).get("content", {}).get("application/json")
        assert content is None or "example" in content or "examples" in content, status


# The check of every answer of every test.

CANCEL = "/functions/v1/calls-batch-cancel"
NOT_FOUND = {"success": False, "error": "Batch not found", "code": "batch_not_found"}
ID = {"x-request-id": "1", "content-type": "application/json"}


@pytest.mark.parametrize(
    ("status", "headers", "body", "is_described"),
    [
        (404, ID, NOT_FOUND, True),
        (418, ID, NOT_FOUND, False),
        (404, {"content-type": "application/json"}, NOT_FOUND, False),
        (404, {**ID, "content-type": "text/html"}, NOT_FOUND, False),
        (404, ID, {**NOT_FOUND, "code": "agent_not_found"}, False),
        (404, ID, {**NOT_FOUND, "hint": "look elsewhere"}, False),
        (404, ID, {"success": False, "error": "Batch not found"}, False),
        (401, ID, {**NOT_FOUND, "code": "unauthorized"}, False),
        (401, {**ID, "www-authenticate": "Bearer"}, {**NOT_FOUND, "code": "unauthorized"}, True),
    ],
)
def test_an_answer_that_is_not_described_is_seen(
    status: int, headers: dict[str, str], body: Any, is_described: bool
) -> None:
    found = wrong_with(CANCEL, "POST", status, Headers(headers), msgspec.json.encode(body))
    assert (found == []) is is_described


def test_a_route_without_its_prefix_is_held_against_the_same() -> None:
    body = msgspec.json.encode(NOT_FOUND)
    assert wrong_with("/calls-batch-cancel", "POST", 404, Headers(ID), body) == []
    assert wrong_with("/calls-batch-cancel", "POST", 418, Headers(ID), body) != []


# Routes and methods.


def test_every_route_is_in_the_file_and_every_path_of_it_is_a_route() -> None:
    paths = {path for path, _, _ in operations()}
    routes = [route.path.replace(":path}", "}") for route in ROUTES]
    prefixed = {route for route in routes if route.startswith(PREFIX)}
    without = {route.removeprefix(PREFIX) for route in prefixed}
    assert without <= set(routes)
    named = {shape(path) for path in paths}
    assert {shape(route) for route in routes} == named
    assert {path for path in paths if path.startswith(PREFIX)} == prefixed  # those without are not told twice


def test_every_path_has_the_methods_of_its_function() -> None:
    for path, item in api()["paths"].items():
        function = _function(path)
        methods = {method.lower() for method in function.methods or ("GET", "PUT", "POST", "DELETE", "PATCH")}
        assert item.keys() == methods, path
        assert methods <= set(METHODS)


@EACH
def test_a_failure_says_what_the_file_says(name: str) -> None:
    path, _, operation = OPERATIONS[name]
    assert resolve(operation["responses"]["500"])["description"].startswith(_function(path).failure)


def _function(path: str) -> EdgeFunction:
    return next(f for route, f in FUNCTIONS.items() if shape(route.replace(":path}", "}")) == shape(path))


# Requests.


@EACH
def test_a_function_reads_what_the_file_names_and_nothing_else(name: str) -> None:
    assert set(_described(name)) == set(_read(name))


@EACH
def test_each_required_field_is_required(name: str) -> None:
    read = {field for field, (_, is_required) in _read(name).items() if is_required}
    assert {field for field, (_, is_required) in _described(name).items() if is_required} == read | _by_the_core(name)


def _by_the_core(name: str) -> set[str]:
    """The fields that the handler does not require itself."""
    return {
        "calls-batch-import": {"file"},
        "webhook-ingest-by-secret": {"webhook_secret"},
    }.get(name, set())


@EACH
def test_a_field_is_of_the_type_that_is_read(name: str) -> None:
    described = _described(name)
    for field, (read, _) in _read(name).items():
        schema = described[field][0]
        assert _kinds(schema) <= _kinds(read) or "any" in _kinds(read), field
        # A null is as if left out, where a field may be; a query and a form have no null.
        if "null" in _kinds(read) and OPERATIONS[name][1] == "post" and name != "calls-batch-import":
            assert "null" in _kinds(schema) or name.startswith("webhook"), field
        assert set(_choices(schema)) == set(_choices(read)), field
        for limit in ("minLength", "maxLength", "minimum"):
            if limit in read and "pattern" not in schema and "format" not in schema:
                assert resolve(schema).get(limit) == read[limit], (field, limit)
        if "maximum" in read:  # the core may allow less
            assert resolve(schema)["maximum"] <= read["maximum"], field
        if "default" in read and read["default"] not in (None, "{}"):
            assert resolve(schema)["default"] == read["default"], field


def _read(name: str) -> dict[str, tuple[Object, bool]]:
    """The fields of the structs, as JSON schemas, and whether they are required."""
    fields: dict[str, tuple[Object, bool]] = {}
    for struct in ASKED.get(name, []):
        whole = msgspec.json.schema(_without_raw(struct))
        described = whole["$defs"][struct.__name__]
        for field, schema in described["properties"].items():
            fields[field] = (_flat(schema, whole["$defs"]), field in described.get("required", []))
    if name == "calls-batch-import":
        fields["file"] = ({"type": "string"}, False)
    if name == "webhook-ingest":
        del fields["webhook_secret"]
    if name == "list-user-batches":
        fields["userId"] = fields.pop("user_id")  # of the path, by place
    if name == "get-user-batch":
        fields["filter"] = (msgspec.json.schema(get_user_batch.Filter)["$defs"]["Filter"], False)
    return fields


def _without_raw(struct: type) -> type:
    """The struct, with anything where JSON is passed on as it came: of that, msgspec has no schema."""
    types = get_type_hints(struct, include_extras=True)
    fields = [
        (field.encode_name, Any if types[field.name] is msgspec.Raw else types[field.name])
        if field.required
        else (field.encode_name, Any if types[field.name] is msgspec.Raw else types[field.name], _default(field))
        for field in msgspec.structs.fields(struct)
    ]
    return msgspec.defstruct(struct.__name__, fields, kw_only=True)


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return None if isinstance(field.default, msgspec.Raw) else field.default


def _described(name: str) -> dict[str, tuple[Object, bool]]:
    """The fields of the file that are a function's own: of its body, or of its path and query."""
    operation = OPERATIONS[name][2]
    body = resolve(operation.get("requestBody", {}))
    if body and not name.startswith("webhook"):
        (content,) = body["content"].values()
        schema = resolve(content["schema"])
        return {field: (_flat(s), field in schema["required"]) for field, s in schema["properties"].items()}
    parameters = [resolve(parameter) for parameter in operation.get("parameters", [])]
    return {
        parameter["name"]: (
            _flat(parameter["schema"] if "schema" in parameter else parameter["content"]["application/json"]["schema"]),
            parameter.get("required", False),
        )
        for parameter in parameters
        if parameter["in"] in ("path", "query")
    }


def _flat(schema: Object, defs: Object | None = None) -> Object:
    """A schema without references at its top."""
    if "$ref" in schema and defs is not None:
        return {**defs[schema["$ref"].rpartition("/")[2]], **{k: v for k, v in schema.items() if k != "$ref"}}
    return resolve(schema)


def _kinds(schema: Object) -> set[str]:
    """The types of JSON that a schema allows."""
    schema = resolve(schema)
    if "anyOf" in schema:
        return {kind for choice in schema["anyOf"] for kind in _kinds(choice)}
    if "type" in schema:
        types = schema["type"]
        return {types} if isinstance(types, str) else set(types)
    return {"string"} if "enum" in schema else {"any"}


def _choices(schema: Object) -> list[Any]:
    schema = resolve(schema)
    if "anyOf" in schema:
        return [value for choice in schema["anyOf"] for value in _choices(choice)]
    return [value for value in schema.get("enum", []) if value is not None]


# Enumerations.


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        ("BatchStatus", ("schema/types.sql", r"type public\.batch_status as enum \((.*?)\);")),
        ("ContactStatus", ("schema/types.sql", r"type public\.contact_status as enum \((.*?)\);")),
        (
            "CallStatus",
            ("schema/types.sql", r"type public\.call_status as enum \(\s*'queued',(.*?)\);"),
        ),  # queued: a lease
        ("Batch/mode", ("schema/types.sql", r"type public\.batch_mode as enum \((.*?)\);")),
        ("Batch/waiting_for", ("private/waiting_for.sql", r"(?:(?<!in )\(|then |else )('\w+')")),
        ("Event/action", ("**/*.sql", r"record_event\((?:[^,]+,){3}\s*('\w+')")),
        ("Event/actor_kind", ("schema/batch_events.sql", r"actor_kind in \((.*?)\)")),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_an_enumeration_has_the_values_that_the_sql_has_and_no_other(schema: str, written: tuple[str, str]) -> None:
    files, pattern = written
    name, _, field = schema.partition("/")
    described = resolve(api()["components"]["schemas"][name])
    values = _choices(described["properties"][field] if field else described)
    texts = [
        found
        for path in (ROOT / "sql").glob(files)
        for found in re.findall(f"(?s){pattern}", re.sub("--.*", "", path.read_text()))
    ]
    assert set(values) == {value for text in texts for value in re.findall(r"'(\w+)'", text)}


# The codes of errors.


def test_the_file_has_the_codes_that_the_code_has_and_no_other() -> None:
    made, patterns = _made_codes()
    described = {code for codes in _values(api(), "code") if isinstance(codes, dict) for code in codes.get("enum", [])}
    assert {code for code in made if code not in described} == set()
    unexplained = {code for code in described - made if not any(re.fullmatch(p, code) for p in patterns)}
    assert unexplained == set()
    for pattern in patterns:
        assert any(re.fullmatch(pattern, code) for code in described), pattern


def _made_codes() -> tuple[set[str], set[str]]:
    """The codes of errors that a request can be answered with, and patterns of those that are put together."""
    texts = [path.read_text() for path in sorted((ROOT / "functions").glob("*.py"))]
    texts += [path.read_text() for path in sorted((ROOT / "functions" / "_shared").glob("*.py"))]
    python = "\n".join(texts)
    codes = set(re.findall(r'(?:FunctionError|FileError|unavailable|invalid)\(\s*(?:\w+,\s*)?"([a-z_]+)"', python))
    codes |= set(re.findall(r'raise invalid\(error, "([a-z_]+)"\)', python)) | {"internal_error", "unauthorized"}
    patterns = {r"[a-z_]+_required"}
    for text in _reached(python):
        for code in re.findall(r'"code": "([a-z_%]+)"', text) + re.findall(r"'code', '([a-z_]+)'", text):
            if "%s" in code:
                patterns.add(code.replace("%s", "[a-z_]+"))
            else:
                codes.add(code)
        for code, more in re.findall(r"(?s)refuse_status\(.*?'([a-z_]+)'( \|\| [\w.]+)?\);", text):
            (patterns if more else codes).add(f"{code}[a-z_]+" if more else code)
    assert codes >= UNREACHABLE
    return codes - UNREACHABLE, patterns


UNREACHABLE = {
    "user_id_required",  # asked for by the handler, in an envelope that has no such code
    "batch_id_ambiguous",  # an id that is not unique: UUIDs are in an agency; in the envelope there is no code
    "sort_invalid",  # in the envelope
    "file_hash_invalid",  # the handler makes it
    "confirmed_invalid",  # the dialer makes these
    "results_invalid",
    "max_batches_out_of_range",
    "max_events_out_of_range",
    "max_holds_out_of_range",  # the handler's limit is the same
    "agency_id_required",  # of a service: a function's caller is a user, of the own agency
    "agency_not_found",
}
"""Codes of procedures that functions call, which no request is answered with."""


def _reached(python: str) -> list[str]:
    """The SQL of the procedures that the functions call, and of what these call."""
    sources = {path.stem: path.read_text() for path in (ROOT / "sql").rglob("*.sql") if path.parent.name != "local"}
    defined = {
        name: text
        for text in sources.values()
        for name in re.findall(r"create or replace function (?:private|public)\.(\w+)", text)
    }
    wanted = [name for name in re.findall(r'"([a-z_]+)"', python) if name in defined]
    seen: dict[str, str] = {}
    while wanted:
        name = wanted.pop()
        if name in defined and name not in seen:
            seen[name] = defined[name]
            wanted += re.findall(r"private\.(\w+)", defined[name])
    return list(seen.values())


def _values(given: Any, key: str) -> Iterator[Any]:
    """The values with this name, at any depth."""
    if isinstance(given, dict):
        if key in given:
            yield given[key]
        for value in given.values():
            yield from _values(value, key)
    elif isinstance(given, list):
        for value in given:
            yield from _values(value, key)


def test_routes_are_edge_functions() -> None:
    assert all(isinstance(route, Route) and isinstance(route.endpoint, EdgeFunction) for route in ROUTES)
