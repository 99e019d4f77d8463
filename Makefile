# `make` lists the targets. Everything is installed into .venv, from lock files with hashes.
PYTHON ?= python3
UV ?= uv
TEST_PROCESSES ?= 3
FUZZ_RUNS ?= 1000000
VENV := .venv
BIN := $(VENV)/bin
# Settings of a person's pip that would change what is installed, or where.
CLEAN := env -u PIP_FIND_LINKS -u PIP_NO_BINARY -u PIP_CONSTRAINT -u PIP_REQUIREMENT -u PIP_USER \
	-u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT -u PIP_REQUIRE_HASHES -u PYTHONPATH -u PYTHONHOME
PIP_FLAGS := --disable-pip-version-check --no-input
PIP := $(CLEAN) $(BIN)/python -m pip $(PIP_FLAGS)
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' $(LOCK_FLAGS)
# pip compiles what it installs, but not what `-e` leaves where it is. Where PYTHONDONTWRITEBYTECODE is
# set, nothing else would, and each start of the program would compile it anew: 0.15 s.
COMPILED = $(BIN)/python -m compileall -q worker schemas
# What the image can do: all but the demo, whose broker is a toy.
IMAGE_EXTRAS = api elasticsearch otel postgresql

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow chaos soak fuzz container-test stack-test lint audit format bench \
	bench-gate docs lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/demo.stamp  ## the whole story in seconds, with an embedded broker and store
	$(BIN)/last-sync demo

test: $(VENV)/dev.stamp $(VENV)/clients.stamp  ## the tests, on a real Kafka (minutes)
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_PROCESSES) --dist worksteal $(PYTEST_FLAGS)

test-slow: $(VENV)/dev.stamp $(VENV)/clients.stamp  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

chaos: $(VENV)/dev.stamp  ## kills, crashes, floods, shutdowns and broken brokers, with a checker (10 to 15 minutes)
	$(BIN)/python -m tests.chaos $(CHAOS_FLAGS)

soak: $(VENV)/dev.stamp  ## an hour at 2,000 events/s with faults: memory, descriptors, threads, delay
	$(BIN)/python -m tests.soak $(SOAK_FLAGS)

fuzz: $(VENV)/fuzz.stamp  ## a million records to what anybody's bytes reach (FUZZ_RUNS=10000: fewer)
	$(BIN)/python -m tests.fuzz --runs $(FUZZ_RUNS) $(FUZZ_FLAGS)

container-test: $(VENV)/dev.stamp  ## some of the tests on a Kafka and a PostgreSQL in Docker
	LAST_SYNC_TEST_BROKER=docker LAST_SYNC_TEST_POSTGRES_SERVER=docker \
		$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal \
		tests/integration/test_brokers.py tests/integration/test_admin.py \
		tests/integration/test_batches.py tests/test_postgres_servers.py $(PYTEST_FLAGS)

stack-test: $(VENV)/dev.stamp  ## docker-compose.yml on a real engine: up, broken, down (minutes)
	$(BIN)/python -m tests.stack

lint: $(VENV)/dev.stamp  ## style, types and common weaknesses
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive worker schemas deploy 2>/dev/null

audit: $(VENV)/dev.stamp  ## known vulnerabilities of what is installed; asks PyPI or OSV (AUDIT_FLAGS="-s osv")
	for lock in image dev sbom; do \
		$(BIN)/pip-audit --strict --disable-pip --require-hashes $(AUDIT_FLAGS) -r requirements/$$lock.txt || exit 1; \
	done

format: $(VENV)/dev.stamp  ## lay the code out
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/dev.stamp  ## the benchmarks of docs/performance.md, small (BENCH="--full drain" takes more)
	$(BIN)/python -m benchmarks $(BENCH)

bench-gate: $(VENV)/dev.stamp  ## fail when an event costs far more CPU than it should (a minute)
	$(BIN)/python -m benchmarks gate

docs: $(VENV)/dev.stamp  ## write the generated documents again
	$(BIN)/python -m docs.generate

# Without constraints of each other they could drift apart; the widest decides.
lock:  ## resolve the lock files again (LOCK_FLAGS=--upgrade takes newer versions); needs uv
	$(COMPILE) pyproject.toml requirements/build.in --all-extras --group dev -o requirements/dev.txt
	$(COMPILE) pyproject.toml requirements/build.in --extra demo -c requirements/dev.txt -o requirements/demo.txt
	$(COMPILE) pyproject.toml $(IMAGE_EXTRAS:%=--extra %) -c requirements/dev.txt -o requirements/image.txt
	$(COMPILE) requirements/build.in -c requirements/dev.txt -o requirements/build.txt
	$(COMPILE) requirements/sbom.in -c requirements/dev.txt -o requirements/sbom.txt
	$(COMPILE) --group fuzz -c requirements/dev.txt -o requirements/fuzz.txt
	$(COMPILE) requirements/elasticsearch-9.in -o requirements/elasticsearch-9.txt
	cd tests/api/clients && PATH="$(CURDIR)/$(BIN):$$PATH" npm install --package-lock-only --silent

clean:  ## forget the virtual environment and the caches
	rm -rf $(VENV) tests/api/clients/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "last-sync needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
			"name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # half of one would pass for a whole

# What tests and benchmarks need holds all that the demo needs.
$(VENV)/demo.stamp: requirements/demo.txt pyproject.toml | $(BIN)/python
	@if [ -e $(VENV)/dev.stamp ]; then $(MAKE) --no-print-directory $(VENV)/dev.stamp; else \
		echo "installing requirements/demo.txt into $(VENV)" && \
		$(PIP) install --quiet --require-hashes -r requirements/demo.txt && \
		$(PIP) install --quiet --no-deps --no-build-isolation -e . && \
		$(COMPILED); fi
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt pyproject.toml | $(BIN)/python
	@echo "installing requirements/dev.txt into $(VENV)"
	@$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@$(COMPILED)
	@touch $@

# Of its own, because it is not there for every platform.
$(VENV)/fuzz.stamp: requirements/fuzz.txt | $(VENV)/dev.stamp
	@echo "installing requirements/fuzz.txt into $(VENV)"
	@$(PIP) install --quiet --require-hashes -r requirements/fuzz.txt
	@touch $@

# Elastic's clients beside the one that the worker uses: the next release, and JavaScript's.
$(VENV)/clients.stamp: requirements/elasticsearch-9.txt tests/api/clients/package-lock.json | $(VENV)/dev.stamp
	@echo "installing Elastic's other clients into $(VENV)/elasticsearch-9 and tests/api/clients"
	@$(PYTHON) -m venv $(VENV)/elasticsearch-9
	@$(CLEAN) $(VENV)/elasticsearch-9/bin/python -m pip $(PIP_FLAGS) install --quiet --require-hashes \
		-r requirements/elasticsearch-9.txt
	@PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --prefix tests/api/clients --ignore-scripts --no-audit \
		--no-fund --silent
	@touch $@
