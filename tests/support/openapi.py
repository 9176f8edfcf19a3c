"""functions/openapi.yaml, as tests read it: and whether what the app answers is what the file says.

Stricter than the file: an object of an answer may hold nothing that the file does not name. (Clients must live with
new keys, so the file itself does not forbid them; but whoever adds one has to describe it.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema_rs
import msgspec
import yaml
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from functions._shared.document import OPENAPI
from functions._shared.http import RequestContext

METHODS = ("get", "put", "post", "delete", "patch")
PREFIX = "/functions/v1"
Object = dict[str, Any]


@cache
def api() -> Object:
    """The file."""
    described: Object = yaml.load(OPENAPI.read_bytes(), Loader=yaml.CSafeLoader)
    return described


def operations() -> Iterator[tuple[str, str, Object]]:
    """Each path, method and operation."""
    for path, item in api()["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def resolve(given: Object) -> Object:
    """The schema that a reference names, with the keys beside the reference."""
    if "$ref" not in given:
        return given
    found: Object = api()
    for key in given["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return {**resolve(found), **{key: value for key, value in given.items() if key != "$ref"}}


def shape(path: str) -> str:
    """A path, whatever its parameters are called: /a/{b} as /a/{}. Without the prefix, by which a function answers as
    well as without it."""
    plain = path.removeprefix(PREFIX)
    return "/".join("{}" if part.startswith("{") else part for part in plain.split("/"))


@cache
def _items() -> dict[str, Object]:
    return {shape(path): item for path, item in api()["paths"].items()}


def described_responses(path: str | None, method: str) -> list[Object]:
    """The responses of the operations that a request for this route may be answered by."""
    if path is None:
        return [{"404": {"$ref": "#/components/responses/NoSuchFunction"}}]
    item = _items()[shape(path)]
    method = "get" if method == "HEAD" else method.lower()
    if "delete" in item:  # one that runs by any method: the file has those that are usual
        return [item["post"]["responses"]]
    # A method without an operation is refused as any operation of the path says.
    return (
        [item[method]["responses"]]
        if method in item
        else [{"405": operation["responses"]["405"]} for operation in item.values()]
    )


def wrong_with(path: str | None, method: str, status: int, headers: Headers, body: bytes) -> list[str]:
    """The differences between an answer and the file."""
    if method == "OPTIONS" and path is not None:
        return [] if (status, body) == (204, b"") else ["a preflight is answered 204, and has no body"]
    for responses in described_responses(path, method):
        if str(status) in responses:
            response = resolve(responses[str(status)])
            return [*_wrong_headers(response, headers), *_wrong_body(response, method, headers, body)]
    return [f"status {status} is not described"]


def _wrong_headers(response: Object, headers: Headers) -> Iterator[str]:
    for name, reference in response.get("headers", {}).items():
        header = resolve(reference)
        if name.lower() not in headers:
            yield f"header {name} is missing"
            continue
        value: Any = headers[name]
        if header["schema"]["type"] == "integer":
            value = int(value)
        yield from (
            f"header {name}: {error.message}" for error in _validator(_key(header["schema"])).iter_errors(value)
        )


def _wrong_body(response: Object, method: str, headers: Headers, body: bytes) -> Iterator[str]:
    if method == "HEAD":
        return
    content = response.get("content", {})
    media_type = headers.get("content-type", "").partition(";")[0]
    if media_type not in content:
        if content or body:
            yield f"content type {media_type or 'none'} is not described"
        return
    value = msgspec.json.decode(body) if media_type == "application/json" else body.decode()
    for error in _validator(_key(content[media_type]["schema"])).iter_errors(value):
        yield f"{'/'.join(map(str, error.instance_path))}: {error.message}"


def _key(schema: Object) -> bytes:
    return msgspec.json.encode(schema)


@cache
def _validator(schema: bytes) -> jsonschema_rs.Validator:
    """By the schema's text: the same schemas come up again and again."""
    whole = {**_closed(msgspec.json.decode(schema)), "components": {"schemas": _closed_schemas()}}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


@cache
def _closed_schemas() -> Object:
    return {name: _closed(schema) for name, schema in api()["components"]["schemas"].items()}


def _closed(schema: Any) -> Any:
    """The schema, in which an object may have the properties that are named and no other."""
    schema = copy.copy(schema)
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    for key in schema.keys() - {"if", "then", "const", "enum", "examples", "default"}:
        schema[key] = _closed(schema[key])
    if isinstance(schema.get("properties"), dict) and "$ref" not in schema and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    return schema


def validator(schema: Object) -> jsonschema_rs.Validator:
    """The validator of a schema of the file, as the file has it."""
    return jsonschema_rs.Draft202012Validator(
        {**schema, "components": {"schemas": api()["components"]["schemas"]}}, validate_formats=True
    )


class CheckedContext(RequestContext):
    """The app's outermost layer, which looks at every answer as it leaves."""

    wrong: list[str] = []  # noqa: RUF012  # of all apps: a test asks for what its own ones answered
    """The differences between answers and the file since a test last looked."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()
        is_complete = False

        async def look(message: Message) -> None:
            nonlocal is_complete
            if message["type"] == "http.response.start":
                start.update(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                is_complete = not message.get("more_body", False)
            await send(message)

        await super().__call__(scope, receive, look)
        if is_complete:  # one that broke off in the middle of its file is no answer
            route = scope.get("route")
            path, method = getattr(route, "path", None), scope["method"]
            headers = Headers(raw=start["headers"])
            found = wrong_with(path, method, start["status"], headers, bytes(body))
            self.wrong.extend(f"{method} {Request(scope).url.path} {start['status']}: {error}" for error in found)
