# Everything from a fresh machine with Python (3.11 or newer) and pip: `make challenge`, `make test`.
# The virtual environment is made on the first call and again when pyproject.toml changes.

PYTHON ?= python3
VENV ?= .venv
# What imports from PyTorch are tested with; `make test TORCH=` does without.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

# What a user needs, and on top of it what a developer needs.
RUN_STAMP := $(VENV)/.run-installed
DEV_STAMP := $(VENV)/.dev-installed

PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help challenge test lint bench clean

help: ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=... picks the interpreter the virtual environment is made with ($(PYTHON)),"
	@echo "  TORCH=... the PyTorch that tests use ($(TORCH)); empty for none."

# Beside a target that installs more, the challenge waits until pip is done.
challenge: $(RUN_STAMP) $(if $(filter test lint bench,$(MAKECMDGOALS)),$(DEV_STAMP)) ## Run the official 1024-neuron, 120-layer network and check the answer
	@$(BIN)/teraedge challenge

test: $(DEV_STAMP) ## Run the tests
	@$(BIN)/python -m pytest --quiet

lint: $(DEV_STAMP) ## Check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy --strict src

bench: $(DEV_STAMP) ## Run the benchmarks and write benchmarks/results
	@$(BIN)/python benchmarks/challenge_cpu.py \
	  --output "benchmarks/results/$$(date +%F)-cpu-challenge-1024.json"
	@$(BIN)/python benchmarks/readme_tables.py

clean: ## Remove the virtual environment, caches and build products
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN_STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: teraedge needs Python 3.11 or newer and $(PYTHON) is older or not there;" \
	       "name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { \
	  echo "error: $(PYTHON) cannot make virtual environments; install its venv module" \
	       "(on Debian and Ubuntu the package python3-venv)" >&2; exit 1; }
	@echo "Setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --editable .
	@touch $@

# After the other stamp, so that make -j never runs two pips on one environment.
$(DEV_STAMP): $(RUN_STAMP)
	@echo "Installing the development tools ..."
	@$(PIP_INSTALL) --editable '.[dev]' $(TORCH)
	@touch $@
