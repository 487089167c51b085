# `make` lists the targets. Needs python3 (3.11 or later, with venv), make and git; everything else goes into .venv.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UNITS := appliance plugins tests

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup run test check lint type cov bench chaos lock build docs clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /\1\t/' | expand -t 10

setup: $(STAMP)  ## install what the lock says into .venv

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

run: setup  ## serve on 127.0.0.1:8000, with embedded servers unless REDIS_URL and DATABASE_URL are set
	$(BIN)/appliance run

test: setup  ## all tests, with real servers
	$(BIN)/pytest --numprocesses $(WORKERS) $(ARGS)

check: lint type  ## what CI checks before the tests

lint: setup  ## style, formatting and the direction of imports
	$(BIN)/ruff check $(UNITS)
	$(BIN)/ruff format --check $(UNITS)
	$(BIN)/lint-imports

type: setup  ## mypy --strict
	$(BIN)/mypy

cov: setup  ## all tests, with branch coverage
	$(BIN)/pytest --numprocesses $(WORKERS) --cov --cov-report=term-missing:skip-covered $(ARGS)

bench: setup  ## throughput and latency against bare loops on this machine
	$(BIN)/python -m tests.bench

chaos: setup  ## the long form: 5000 simulated worlds, 200 seeded kills (SIMULATION_SEED=n, CHAOS_SEED=n repeat one)
	SIMULATION_CASES=$${SIMULATION_CASES:-5000} $(BIN)/pytest --timeout 3600 tests/unit/engine/test_simulation.py $(ARGS)
	CHAOS_KILLS=$${CHAOS_KILLS:-200} $(BIN)/pytest --timeout 3600 tests/chaos $(ARGS)

docs: setup  ## write the pages that are made from declarations
	$(BIN)/python -m tests.documents

# --universal: one lock for every platform and Python. No hosts in it: it works with any index.
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	--no-annotate --upgrade pyproject.toml

lock: setup  ## resolve the newest allowed versions anew
	$(LOCK) --extra dev --output-file requirements.lock
	$(LOCK) --extra embedded --constraint requirements.lock --output-file config/deploy/requirements.lock

build: setup  ## wheel and sdist into dist/
	$(BIN)/hatchling build

clean:  ## remove what was built or cached, and the .venv; data/ stays
	rm -rf $(VENV) dist build htmlcov .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
