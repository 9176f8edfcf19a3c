"""The table of functions in functions/README.md, from the routes, the OpenAPI file and sql/: make documents."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from functions.app import ROUTES

from .openapi import Object, api, shape

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "functions" / "README.md"
_BEGIN, _END = "<!-- functions: make documents -->\n", "<!-- end of functions -->\n"
_PROCEDURES = {
    name: path
    for path in sorted((ROOT / "sql").glob("*/*.sql"))
    for name in re.findall(r"^create or replace function public\.(\w+)", path.read_text(), re.MULTILINE)
}
_CALLERS = {"user": "user", "service": "service", "standardWebhooks": "carrier, signed", None: "anybody"}
_CHECKS_ADMIN = re.compile(r"private\.(require_admin|find_admin_agency)\(")


def table() -> str:
    """The table, a row for each address."""
    endpoints = {shape(route.path): route.endpoint for route in ROUTES}
    rows = ["| Address | Module | Procedures | Caller | Tests of that name |", "|---|---|---|---|---|"]
    for path, item in api()["paths"].items():
        module = inspect.getmodule(endpoints[shape(path)].handler)
        assert module is not None
        name = module.__name__.removeprefix("functions.")
        procedures = _procedures(inspect.getsource(module))
        tests = sorted({test for word in (name, *procedures) for test in (ROOT / "tests").glob(f"*/test_{word}.py")})
        cells = (
            f"`{_methods(item)} {path}`",
            f"[`{name}`]({name}.py)",
            ", ".join(f"[`{found}`](../{_PROCEDURES[found].relative_to(ROOT)})" for found in procedures),
            _caller(path, next(iter(item.values())).get("security"), procedures),
            ", ".join(f"[`{test.parent.name}/`](../{test.relative_to(ROOT)})" for test in tests),
        )
        rows.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(rows) + "\n"


def _methods(item: Object) -> str:
    return "any" if "delete" in item else ", ".join(map(str.upper, item))


def _procedures(source: str) -> list[str]:
    return list(dict.fromkeys(name for name in re.findall(r'"(\w+)"', source) if name in _PROCEDURES))


def _caller(path: str, security: list[dict[str, object]] | None, procedures: list[str]) -> str:
    if "{webhook_secret}" in path:
        return "carrier, by the secret"
    if security is None and any(_CHECKS_ADMIN.search(_PROCEDURES[name].read_text()) for name in procedures):
        return "owner or admin"
    scheme = "user" if security is None else next(iter(security[0]), None) if security else None
    return _CALLERS[scheme]


def write() -> None:
    """Write the table into functions/README.md."""
    before, _, rest = README.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    README.write_text(f"{before}{_BEGIN}{table()}{_END}{after}")


def written() -> str:
    """The table as functions/README.md has it."""
    return README.read_text().partition(_BEGIN)[2].partition(_END)[0]


if __name__ == "__main__":
    write()
