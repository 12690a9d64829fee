# Everything runs from .venv; `make help` lists the targets.
.DELETE_ON_ERROR:
.PHONY: help setup demo up down test check bench image

venv := .venv
python := $(venv)/bin/python
stamp := $(venv)/.installed
# Modules of tools, not scripts: they import one another.
checkpoint := worker/models/checkpoints/demo.safetensors
upscalers := worker/models/upscalers/demo-x2.safetensors worker/models/upscalers/demo-x4.safetensors
image := imagefleet-worker

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile

setup: $(stamp) ## install everything into .venv (again when the pinned versions change)

demo: $(stamp) $(checkpoint) $(upscalers) ## start a fleet, draw pictures into out/, stop it
	$(python) -m localfleet demo

up: $(stamp) $(checkpoint) $(upscalers) ## start Redis, S3, Flower and one worker on this machine
	$(python) -m localfleet up

down: ## stop what `make up` started
	@[ ! -x $(python) ] || $(python) -m localfleet down

# Tests run several torch processes at once: threads that spin while they wait starve each other.
test: export OMP_WAIT_POLICY := passive
test: $(stamp) ## run the tests
	$(python) -m pytest

check: $(stamp) ## check format, lint and types
	$(venv)/bin/ruff format --check
	$(venv)/bin/ruff check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(venv)/bin/pyright

bench: $(stamp) ## run every benchmark
	@set -e; for each in tests/benchmarks/bench_*.py; do \
		echo "== $$each"; $(python) -m tests.benchmarks.$$(basename "$$each" .py); done

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

$(checkpoint): tools/make_demo_checkpoint.py | $(stamp)
	@mkdir -p $(@D)
	$(python) -m tools.make_demo_checkpoint $@

# A pattern, so that one run makes all of them, in every version of make.
worker/models/upscalers/%-x2.safetensors worker/models/upscalers/%-x4.safetensors: tools/make_demo_upscaler.py | $(stamp)
	@mkdir -p $(@D)
	$(python) -m tools.make_demo_upscaler $(@D)
