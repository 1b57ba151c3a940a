# Every step from a fresh clone: each target installs what it needs into .venv and runs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help serve test lint format bench train clean

help: ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

serve: $(VENV)/.gateway ## Serve the embedded model on http://127.0.0.1:8000 (no torch needed)
	$(BIN)/foveal serve

test: $(VENV)/.dev ## Run every test that needs no GPU
	$(BIN)/python -m pytest -m "not gpu"

lint: $(VENV)/.dev ## Check style, types and the manifest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## Measure the gateway beside a bare loop and write benchmarks/results/
	$(BIN)/python -m benchmarks.serving

train: $(VENV)/.dev ## Train the embedded model anew (DATA = folder with train/ and val/)
	$(BIN)/foveal-train run imagenette-vitt8 data=$(DATA)/train

clean: ## Remove the virtual environment and the caches
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Foveal needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(SUDO) apt-get install -y python3-venv
	$(PYTHON) -m venv $(VENV)

$(VENV)/.gateway: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu,training,dev]'
	@touch $@ $(VENV)/.gateway
