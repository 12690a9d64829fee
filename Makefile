# Everything runs from .venv; `make help` lists the targets.
.DELETE_ON_ERROR:
.PHONY: help setup demo up down test check bench bench-gpu gpu-check gpu-wheels image \
	train train-autoencoder train-decoder train-unet train-adapters train-embedding train-upscaler train-faces

venv := .venv
python := $(venv)/bin/python
stamp := $(venv)/.installed
image := imagefleet-worker
models := worker/models
# pip takes a wheel for exactly these, not for older ones too.
gpu_platforms := $(foreach each,manylinux1 manylinux2014 manylinux_2_17 manylinux_2_27 manylinux_2_28 \
	manylinux_2_34 manylinux_2_35,--platform $(each)_x86_64)
# Half-finished trainings, from which they go on.
training := .local/training

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 28

setup: $(stamp) ## install everything into .venv (again when the pinned versions change)

demo: $(stamp) ## start a fleet, draw pictures into out/, stop it
	$(python) -m localfleet demo

up: $(stamp) ## start Redis, S3, Flower and one worker on this machine
	$(python) -m localfleet up

down: ## stop what `make up` started
	@[ ! -x $(python) ] || $(python) -m localfleet down

# Tests run several torch processes at once: threads that spin while they wait starve each other.
test: export OMP_WAIT_POLICY := passive
test: $(stamp) ## run the tests
	$(python) -m pytest

check: $(stamp) ## check format, lint, types and who imports whom
	$(venv)/bin/ruff format --check
	$(venv)/bin/ruff check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(venv)/bin/pyright
	$(venv)/bin/lint-imports --no-cache --no-logo

bench: $(stamp) ## run every benchmark
	@set -e; for each in tests/benchmarks/bench_*.py; do \
		echo "== $$each"; $(python) -m tests.benchmarks.$$(basename "$$each" .py); done

bench-gpu: $(stamp) ## run what takes a GPU: full-size benchmarks and the tests under tests/gpu
	$(python) -m tests.benchmarks.bench_options
	$(python) -m tests.benchmarks.bench_fleet --full-size --family sd1 --device cuda
	$(python) -m tests.benchmarks.bench_fleet --full-size --family sdxl --device cuda
	$(python) -m pytest tests/gpu

# Without .venv too, as on a machine without a network: see tools/gpu_check.py.
gpu-check: ## check and measure on a GPU machine, in at most 8 minutes; QUICK=1 tries it on a CPU
	python3 -m tools.gpu_check $(if $(QUICK),--quick)

gpu-wheels: ## fetch into .whl what gpu-check needs on a GPU machine without a network
	rm -rf .whl
	python3 -m pip download --quiet --disable-pip-version-check --dest .whl --no-deps \
		--only-binary=:all: --implementation cp --python-version 3.12 $(gpu_platforms) \
		--constraint constraints.txt --requirement requirements-gpu.txt

image: ## build the worker's container image
	docker build --file worker/Dockerfile --target worker --tag $(image) .

$(stamp): requirements-dev.txt constraints.txt shared/pyproject.toml producer/pyproject.toml worker/pyproject.toml
	@[ -x $(python) ] || for each in python3.11 python3.12 python3.13 python3; do \
		"$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
		{ "$$each" -m venv $(venv); break; }; done
	@[ -x $(python) ] || { echo "Python 3.11 or later is needed" >&2; exit 1; }
	$(python) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement requirements-dev.txt --editable shared --editable producer --editable worker
	@# The tests compare our solvers with its samplers; what else it needs is for training.
	$(python) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--no-deps k-diffusion
	@touch $@

# The demo's models are in the repository; these make them anew, on a GPU if there is one.
# Modules of tools, not scripts: they import one another.
train: train-autoencoder train-decoder train-unet train-adapters train-embedding train-upscaler train-faces ## train all of the demo's models

train-autoencoder: $(stamp) ## train the demo checkpoint's autoencoder, first of all
	$(python) -m tools.training.train_autoencoder $(training)

train-decoder: $(stamp) ## train that autoencoder's decoder further
	$(python) -m tools.training.train_decoder $(training)

train-unet: $(stamp) ## train the demo checkpoint's UNet and text encoder, and write it
	$(python) -m tools.training.train_unet $(training)
	$(python) -m tools.training.assemble $(training) $(models)

train-adapters: $(stamp) ## train the demo's LoRAs and its LoHa on its checkpoint
	$(python) -m tools.training.train_adapter blueprint $(training) $(models)
	$(python) -m tools.training.train_adapter snowman $(training) $(models)
	$(python) -m tools.training.train_adapter sticker $(training) $(models)

train-embedding: $(stamp) ## train the demo's textual inversion on its checkpoint
	$(python) -m tools.training.train_embedding $(training) $(models)

train-upscaler: $(stamp) ## train the demo's SwinIR
	$(python) -m tools.training.train_upscaler $(training) $(models)

train-faces: $(stamp) ## train the demo's face detector
	$(python) -m tools.training.train_face_detector $(training) $(models)
