# Every target that runs something goes through `install`, which makes .venv from the lock file.
PYTHON   ?= python3
VENV     := .venv
BIN      := $(VENV)/bin
STAMP    := $(VENV)/.installed
SCALE    ?=
DURATION ?=
EXAMPLE  ?= lending
TESTERS  ?= 4
ROUNDS   ?= 5
# Debian has 15; the shortest comes last
SERVERS  ?= 14 16 17 debian 18

.PHONY: help install demo test test-soak test-matrix bench bench-quick lint types contracts check clean lock

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

install: $(STAMP)  ## .venv with everything, from the lock file

$(STAMP): requirements.lock pyproject.toml client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Upkeep needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make install PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 -m venv failed: on Debian, apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable client --editable .
	@touch $@

demo: install  ## the sample lending system kept fresh before your eyes (SCALE=1, DURATION=60, EXAMPLE=trading)
	@$(BIN)/upkeep demo --example $(EXAMPLE) $(if $(SCALE),--scale $(SCALE)) $(if $(DURATION),--duration $(DURATION))

test: install  ## the whole suite, on embedded servers (TESTERS=1 for one file at a time)
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

test-soak: install  ## the fault tests again and again (ROUNDS=5)
	@for round in $$(seq $(ROUNDS)); do echo "round $$round"; $(BIN)/python -m pytest tests/faults -n $(TESTERS) --dist loadfile --no-loadscope-reorder || exit 1; done

test-matrix: install  ## what touches PostgreSQL, on 14 to 18 with contrib (SERVERS="14 debian" for some)
	$(BIN)/python -m tests.matrix $(SERVERS)

bench: install  ## every figure, as ratios against a peer in the same run
	@status=0; for name in refresh clock events partitions; do $(BIN)/python -m benchmarks $$name || status=1; done; exit $$status

bench-quick: install  ## every benchmark in quick mode, under 50 s each: that all of its parts measure
	$(BIN)/python -m pytest -m bench

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

contracts: install
	$(BIN)/lint-imports

check: lint types contracts  ## linters, types, import contracts

lock:  ## rewrite requirements.lock from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-package upkeep-client --no-header -q -o requirements.lock

clean:
	rm -rf $(VENV) .servers .mypy_cache .ruff_cache .pytest_cache dist build
