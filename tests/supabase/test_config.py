"""supabase/config.toml: what it says of the functions is what the app has."""

from __future__ import annotations

import tomllib

from functions._shared.http import EdgeFunction
from functions.app import ROUTES
from functions.migrations import SQL

CONFIG = tomllib.loads((SQL.parent / "supabase" / "config.toml").read_text())


def test_each_edge_function_of_the_app_has_its_entry() -> None:
    functions = {
        route.endpoint.handler.__name__.replace("_", "-")
        for route in ROUTES
        if isinstance(route.endpoint, EdgeFunction) and route.path.startswith(("/functions/v1/", "/api/call/"))
    }
    assert set(CONFIG["functions"]) == functions


def test_each_entry_has_its_forwarder() -> None:
    folders = {path.parent.name for path in (SQL.parent / "supabase" / "functions").glob("*/index.ts")}
    assert set(CONFIG["functions"]) == folders


def test_the_app_alone_verifies_who_calls() -> None:
    assert {name for name, entry in CONFIG["functions"].items() if entry != {"verify_jwt": False}} == set()


def test_the_core_is_not_exposed() -> None:
    assert CONFIG["api"]["schemas"] == ["public"]
