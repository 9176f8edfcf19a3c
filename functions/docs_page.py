"""The page that /docs shows: an OpenAPI description as HTML, without scripts and without another host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import Any
from urllib.parse import quote

Object = dict[str, Any]

METHODS = ("get", "put", "post", "delete", "patch")
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --link: light-dark(#0550ae, #79b8ff); }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 78rem; font: 16px/1.5 system-ui, sans-serif;
       display: grid; grid-template-columns: 18rem minmax(0, 1fr); gap: 2.5rem; }
a { color: var(--link); text-decoration: none; }
a:hover, a:focus { text-decoration: underline; }
nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow: auto; padding: 1rem 0;
      font-size: .9rem; }
nav ul { list-style: none; margin: 0 0 1rem; padding: 0; }
nav li { overflow-wrap: anywhere; padding: .1rem 0; }
h1, h2, h3, h4 { line-height: 1.25; }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
h3 { font-size: 1.05rem; overflow-wrap: anywhere; }
h4 { margin: 1.2rem 0 .4rem; }
article { margin: 1.5rem 0 2.5rem; }
code, pre { font: .875em/1.5 ui-monospace, monospace; }
code { background: var(--soft); border-radius: 3px; padding: .1em .25em; overflow-wrap: anywhere; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 6px; padding: .7rem; margin: .5rem 0;
      overflow: auto; max-height: 28rem; }
pre.copy { user-select: all; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); padding: .35rem .6rem .35rem 0; }
th:nth-child(1) { width: 28%; }
th:nth-child(2) { width: 27%; }
details { border-bottom: 1px solid var(--line); padding: .35rem 0; }
summary { cursor: pointer; }
.method { font: 700 .8em ui-monospace, monospace; letter-spacing: .03em; }
.required { font-size: .8em; opacity: .75; }
@media (max-width: 56rem) { body { display: block; } nav { position: static; max-height: none; } }
"""


def page(api: Object) -> str:
    """The page of this OpenAPI 3.1 description, in UTF-8."""
    return "\n".join(_Page(api).lines())


class _Page:
    def __init__(self, api: Object) -> None:
        self.api = api
        self.paths: list[tuple[str, list[tuple[str, Object]]]] = [
            (path, group) for path, item in api["paths"].items() for group in _alike(item)
        ]

    def lines(self) -> Iterator[str]:
        info = self.api["info"]
        yield "<!doctype html>"
        yield '<html lang="en"><head><meta charset="utf-8">'
        yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
        yield f"<title>{escape(info['title'])} {escape(info['version'])}</title><style>{STYLE}</style></head><body>"
        yield from self.navigation()
        yield f"<main><h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        yield f"<p><strong>{escape(info['summary'])}</strong> <a href='openapi.yaml'>openapi.yaml</a></p>"
        yield _text(info["description"])
        yield "<p>The commands need two variables; <code>lastcall token</code> makes a token to try things with.</p>"
        yield "<pre class='copy'>URL=http://127.0.0.1:8787\nTOKEN=...</pre>"
        for tag in self.api["tags"]:
            yield f"<section id='{_id('tag', tag['name'])}'><h2>{escape(tag['name'])}</h2>{_text(tag['description'])}"
            for path, operations in self.of(tag):
                yield from self.operations(path, operations)
            yield "</section>"
        yield "<section id='security'><h2>Authentication</h2>"
        for name, scheme in self.api["components"]["securitySchemes"].items():
            text = _text(scheme["description"])
            yield f"<article id='{_id('security', name)}'><h3>{escape(name)}</h3>{text}</article>"
        yield "</section><section id='schemas'><h2>Schemas</h2>"
        for name, schema in self.api["components"]["schemas"].items():
            yield f"<article id='{_id('schema', name)}'><h3>{escape(name)}</h3>{self.schema(schema)}</article>"
        yield "</section></main></body></html>"

    def of(self, tag: Object) -> list[tuple[str, list[tuple[str, Object]]]]:
        return [(path, group) for path, group in self.paths if tag["name"] in group[0][1]["tags"]]

    def navigation(self) -> Iterator[str]:
        yield "<nav aria-label='Functions'>"
        for tag in self.api["tags"]:
            yield f"<a href='#{_id('tag', tag['name'])}'><strong>{escape(tag['name'])}</strong></a><ul>"
            for _, operations in self.of(tag):
                operation = operations[0][1]
                yield f"<li><a href='#{operation['operationId']}'>{escape(operation['summary'])}</a></li>"
            yield "</ul>"
        yield "<a href='#security'>Authentication</a><br><a href='#schemas'>Schemas</a></nav>"

    def operations(self, path: str, operations: list[tuple[str, Object]]) -> Iterator[str]:
        """Operations that differ in their method only are shown as one."""
        method, operation = operations[0]
        methods = " ".join(f"<span class='method' id='{o['operationId']}'>{m.upper()}</span>" for m, o in operations)
        yield f"<article><h3>{methods} <a href='#{operation['operationId']}'><code>{escape(path)}</code></a></h3>"
        yield f"<p><strong>{escape(operation['summary'])}.</strong> {self.security(operation)}</p>"
        yield _text(operation["description"])
        parameters = [self.resolve(parameter) for parameter in operation.get("parameters", [])]
        yield "<h4>Parameters</h4>"
        yield _table(
            (
                f"{self.name(parameter['name'], parameter.get('required', False))}<br>{escape(parameter['in'])}",
                self.type(_schema(parameter)),
                _inline(parameter.get("description", "")),
            )
            for parameter in parameters
        )
        body = self.resolve(operation.get("requestBody", {}))
        for media_type, content in body.get("content", {}).items():
            yield f"<h4>Body <code>{escape(media_type)}</code></h4>{self.schema(self.resolve(content['schema']))}"
        yield "<h4>Try it</h4>"
        yield f"<pre class='copy'>{escape(self.curl(method, path, operation, parameters, body))}</pre>"
        yield "<h4>Answers</h4>"
        for status, response in operation["responses"].items():
            yield from self.response(status, response)
        yield "</article>"

    def response(self, status: str, given: Object) -> Iterator[str]:
        response = self.resolve(given)
        opened = " open" if status < "300" else ""
        yield f"<details{opened}><summary><strong>{status}</strong> {_inline(response['description'])}</summary>"
        names = ", ".join(f"<code>{escape(name)}</code>" for name in response.get("headers", {}))
        yield f"<p>Headers: {names}</p>" if names else ""
        for media_type, content in response.get("content", {}).items():
            codes = content["schema"].get("properties", {}).get("code", {}).get("enum", [])
            yield f"<p><code>{escape(media_type)}</code> {self.type(content['schema'])}</p>"
            yield f"<p>code: {' '.join(f'<code>{escape(code)}</code>' for code in codes)}</p>" if codes else ""
            examples = [example["value"] for example in content.get("examples", {}).values()]
            for example in examples or [content[key] for key in ("example",) if key in content]:
                yield f"<pre>{escape(_example(example))}</pre>"
        yield "</details>"

    def security(self, operation: Object) -> str:
        """The ways to authenticate, with links."""
        links = [f"<a href='#{_id('security', name)}'>{escape(name)}</a>" for name in self.schemes(operation)]
        return f"Authentication: {' or '.join(links)}." if links else "Open to everybody."

    def schemes(self, operation: Object) -> list[str]:
        """The security schemes, one of which is needed."""
        choices: list[Object] = operation["security"] if "security" in operation else self.api["security"]
        return [name for choice in choices for name in choice]

    def schema(self, schema: Object) -> str:
        """The description of a schema, and its properties as a table."""
        parts = [_text(schema.get("description", "")), "" if "properties" in schema else f"<p>{self.type(schema)}</p>"]
        if "properties" in schema:
            required = schema.get("required", [])
            parts.append(
                _table(
                    (self.name(name, name in required), self.type(property_), self.described(property_))
                    for name, property_ in schema["properties"].items()
                )
            )
        return "".join(parts)

    def described(self, schema: Object) -> str:
        """A property, with the properties of its own."""
        text = _inline(self.resolve(schema).get("description", "")) if "description" in schema else ""
        inner = schema if "properties" in schema else schema.get("items", {})
        return text + (self.schema({"properties": inner["properties"]}) if "properties" in inner else "")

    def type(self, schema: Object) -> str:
        """A schema in a few words; a named one by its name."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return f"<a href='#{_id('schema', name)}'>{escape(name)}</a>"
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return " or ".join(self.type(choice) for choice in schema[key])
        if "const" in schema:
            return f"<code>{escape(json.dumps(schema['const']))}</code>"
        if "enum" in schema:
            return " ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
        types = schema.get("type", "object" if "properties" in schema else "any")
        words = " or ".join([types] if isinstance(types, str) else types)
        if "items" in schema:
            words = words.replace("array", f"array of {self.type(schema['items'])}")
        low, high = (schema.get(name) for name in ("minimum", "maximum"))
        limits = [
            f"from {low}" if low is not None else "",
            f"to {high}" if high is not None else "",
            f"<code>{escape(schema['pattern'])}</code>" if "pattern" in schema else "",
            escape(schema.get("format", "")),
            f"default <code>{escape(json.dumps(schema['default']))}</code>" if "default" in schema else "",
        ]
        return " ".join([words, *filter(None, limits)])

    def name(self, name: str, required: bool) -> str:
        return f"<code>{escape(name)}</code>" + (" <span class='required'>required</span>" if required else "")

    def curl(self, method: str, path: str, operation: Object, parameters: list[Object], body: Object) -> str:
        """A command that asks for the operation with its examples."""
        query = []
        for parameter in parameters:
            example = parameter.get("example")
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", quote(str(example), safe=""))
            elif parameter["in"] == "query" and parameter.get("required"):
                query.append(f"{parameter['name']}={quote(str(example), safe='')}")
        url = path + ("?" + "&".join(query) if query else "")
        lines = [f'curl{"" if method == "get" else f" -X {method.upper()}"} "$URL{url}"']
        if {"user", "service"} & set(self.schemes(operation)):
            lines.append('-H "Authorization: Bearer $TOKEN"')
        for media_type, content in body.get("content", {}).items():
            if media_type == "multipart/form-data":
                fields = content["example"].items()
                lines += [f"-F {name}={'@' if name == 'file' else ''}{value}" for name, value in fields]
            else:
                data = json.dumps(content["example"], indent=2, ensure_ascii=False).replace("'", "'\\''")
                lines += [f"-H 'Content-Type: {media_type}'", f"-d '{data}'"]
        return " \\\n  ".join(lines)

    def resolve(self, given: Object) -> Object:
        """The schema that a reference names, with the keys beside the reference."""
        if "$ref" not in given:
            return given
        found: Object = self.api
        for key in given["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        return {**self.resolve(found), **{key: value for key, value in given.items() if key != "$ref"}}


def _alike(item: Object) -> list[list[tuple[str, Object]]]:
    """The operations of a path, those with the same answers together."""
    operations = [(method, operation) for method, operation in item.items() if method in METHODS]
    return [list(group) for _, group in groupby(operations, key=lambda pair: pair[1]["responses"])]


def _schema(parameter: Object) -> Object:
    described: Object = parameter if "schema" in parameter else next(iter(parameter["content"].values()))
    schema: Object = described["schema"]
    return schema


def _id(kind: str, name: str) -> str:
    return f"{kind}-{name}"


def _table(rows: Any) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    head = "<thead><tr><th scope='col'>Name</th><th scope='col'>Type</th><th scope='col'>Meaning</th></tr></thead>"
    return f"<table>{head}<tbody>{lines}</tbody></table>"


def _text(text: str) -> str:
    """Paragraphs."""
    return "".join(f"<p>{_inline(paragraph)}</p>" for paragraph in text.split("\n\n") if paragraph.strip())


def _inline(text: str) -> str:
    """Text in which `this` is code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text.strip()))


def _example(example: Any) -> str:
    return example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)
