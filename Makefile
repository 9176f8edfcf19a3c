.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: help install demo serve test lint bench migration
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## create .venv with everything in it

demo: install  ## cancel and stop two batches in mid-flight, and prove it
	$(BIN)/lastcall demo

serve: install  ## the functions on http://127.0.0.1:8787, with an embedded PostgreSQL
	$(BIN)/lastcall serve

test: install  ## every test, on a PostgreSQL of its own
	$(BIN)/pytest -n 2

lint: install  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install  ## the benchmarks of the README
	$(BIN)/python -m tests.benchmarks

migration: install  ## write what changed in sql/ as a migration: make migration name=...
	$(BIN)/python -c 'import sys; from functions.migrations import create_migration; print(create_migration(sys.argv[1]))' $(name)
