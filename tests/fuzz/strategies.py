"""Hostile values: JSON as text, for most of it no JSON library would write; bodies, headers, queries, paths."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import hypothesis.strategies as st
from hypothesis.strategies import SearchStrategy

from .rule import PHONE_NUMBER, PLANTED

LEVELS = (10, 900, 1_100, 10_000)
"""How deep nested JSON goes: below and above what Python and Postgres take."""

STRANGE_TEXT = [
    "",
    " ",
    PLANTED,
    PHONE_NUMBER,
    PLANTED * 40,
    "\x00",
    "\x01\x1f\x7f",
    "\u202e\u2028\ufeff\ufffe",
    "\U0001f600e\u0301",
    "%s %(x)s {} {0} %00 ../../etc/passwd",
    "'; drop table call_batches; --",
    '"\\',
    "null",
    "NaN",
    "infinity",
    "-infinity",
    "now",
    "1e999",
    "0x10",
    "\u0661\u0662",
    "99999999999999999999",
    "-1",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
    "2025-02-30T25:61:61Z",
    "24:00",
    "25:00",
    "America/New_York",
    "../UTC",
    "{}",
    "{0d1c2b3a-4f5e-4a6b-8c7d-9e8f7a6b5c4d}",
    "urn:uuid:0d1c2b3a-4f5e-4a6b-8c7d-9e8f7a6b5c4d",
    "0D1C2B3A4F5E4A6B8C7D9E8F7A6B5C4D",
    "00000000-0000-0000-0000-000000000000",
    "64e5f12345abcdef98765432",
    "W10=",
    "WzEsMl0",
]
text = st.sampled_from(STRANGE_TEXT) | st.text(max_size=30)

_NUMBERS = ["0", "-0", "-1", "1.5", "1e-400", "1e400", "1e131073", "-1E+999999", "9" * 400, "9" * 5_000, "2147483648"]
_NUMBERS += ["9223372036854775807", "9223372036854775808", "18446744073709551616", "1e2", "1.0"]
_NO_JSON = [
    "NaN",
    "Infinity",
    "-Infinity",
    "01",
    "+1",
    "'x'",
    "undefined",
    "",
    "{,}",
    "[1,]",
    '"\t"',
    '"\\x"',
    "\ufeff1",
]
_HALF_PAIRS = [r'"\ud800"', r'"x\udc00\ud800"', r'"\ud83d\ude00"', r'"\u0000"', r'{"\u0000": 1}', r'{"\ud800": 1}']
_NESTED = [level * n + end * n for n in LEVELS for level, end in (("[", "]"), ('{"a":', "}"))]
_NESTED += ["[" * 10_000, '{"a":' * 10_000]

_leaves = (
    text.map(json.dumps)
    | text.map(lambda value: json.dumps(value, ensure_ascii=False))
    | st.sampled_from(["null", "true", "false", "{}", "[]", *_NUMBERS, *_NO_JSON, *_HALF_PAIRS, *_NESTED])
)


def _object(pairs: list[tuple[str, str]]) -> str:
    return f"{{{','.join(f'{json.dumps(name)}:{value}' for name, value in pairs)}}}"


json_text: SearchStrategy[str] = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(text, inner), max_size=3).map(_object)
    ),
    max_leaves=4,
)
"""JSON, and what is nearly JSON."""


def spoiled(valid: dict[str, Any]) -> SearchStrategy[str]:
    """The object with some members replaced, left out, added, given twice; those that are objects, or lists of them,
    are spoiled within too."""

    def member(name: str) -> SearchStrategy[list[tuple[str, str]]]:
        value = valid[name]
        ways = [json_text.map(lambda spoiled: [(name, spoiled)]), st.just([])]
        if isinstance(value, dict):
            ways.append(spoiled(value).map(lambda inner: [(name, inner)]))
        if isinstance(value, list) and value and isinstance(value[0], dict):
            ways.append(st.lists(spoiled(value[0]), max_size=2).map(lambda inner: [(name, f"[{','.join(inner)}]")]))
        ways.append(st.tuples(json_text).map(lambda twice: [(name, json.dumps(value)), (name, twice[0])]))
        return st.one_of(ways)

    kept = {name: [(name, json.dumps(value))] for name, value in valid.items()}

    def spoil(names: set[str]) -> SearchStrategy[str]:
        members = [member(name) if name in names else st.just(kept[name]) for name in valid]
        extra = st.lists(st.tuples(text, json_text), max_size=1)
        return st.tuples(*members, extra).map(lambda parts: _object([pair for part in parts for pair in part]))

    return st.sets(st.sampled_from(sorted(valid)), max_size=2).flatmap(spoil)


def encoded(body: SearchStrategy[str]) -> SearchStrategy[bytes]:
    """The text as bytes, whole or damaged."""
    plain = body.map(lambda given: given.encode(errors="surrogatepass"))
    return st.one_of(
        plain,
        plain.map(lambda data: b"\xef\xbb\xbf" + data),
        plain.map(lambda data: data + data),
        st.tuples(plain, st.integers(0, 200)).map(lambda given: given[0][: given[1]]),
        st.tuples(plain, st.integers(0, 60), st.binary(max_size=4)).map(
            lambda given: given[0][: given[1]] + given[2] + given[0][given[1] :]
        ),
        body.map(lambda given: given.encode("utf-16", errors="surrogatepass")),
    )


header_value = st.one_of(
    st.sampled_from(["", " ", PLANTED, PLANTED * 30, "x" * 256, "a, b", "=?utf-8?q?x?=", '"', "\t", "%00"]).map(
        str.encode
    ),
    # An HTTP server lets anything through but the ends of lines and NUL.
    st.binary(max_size=40).map(lambda value: value.translate(None, b"\r\n\0").strip()),
)
"""The bytes of a header."""

query = st.lists(st.tuples(text, text), max_size=2)
"""Parameters of no meaning."""

path_segment = st.one_of(
    text.map(lambda value: quote(value, safe="")),
    st.sampled_from(["..", ".", "%2e%2e", "%2F", "%00", "%ff", "%c0%ae", "%", "%zz", ";x=y", "a%2Fb", "%u0041", "\\"]),
)
"""A part of a path, percent-encoded, or badly."""
