# Two commands: `make train` and `make test`. Everything they need is set up in .venv on first use.
PYTHON ?= python3
CONFIG ?= configs/quickstart.yaml
RUN    ?= $(basename $(notdir $(CONFIG)))
ROOT   ?= artifacts
BIN    := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help train test test-fast lint stop clean

help: ## Show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

train: .venv/installed ## Train CONFIG (default: the quickstart) through a local Prefect server, and print what came out
	@$(BIN)/polyepo train $(CONFIG) --run $(RUN) --root $(ROOT)

test: .venv/installed ## Run all tests
	@$(BIN)/pytest

test-fast: .venv/installed ## Run the tests that start no servers and kill no processes
	@$(BIN)/pytest -m "not slow"

lint: .venv/installed ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

stop: .venv/installed ## Stop the local Prefect server and worker
	@$(BIN)/polyepo stop

clean: ## Remove the virtual environment and caches; runs in artifacts/ stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# torch is installed first and by its exact version: left to itself pip may fetch gigabytes of CUDA libraries.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || { echo "· making .venv"; $(PYTHON) -m venv .venv; }
	@echo "· installing pinned packages (about 2 GB, a few minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt torch
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
