# Every target but `clean` first makes .venv when pyproject.toml,
# constraints.txt or the compiled kernels changed.

PYTHON ?= python3
# More arguments for pip. On a machine without a CUDA GPU this takes the small CPU build of torch
# instead of the CUDA build that Linux gets from the default index:
#   make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# Arguments for `make serve`, `make test` and the benchmarks, e.g. make serve ARGS="--port 8080".
ARGS ?=
# Of `make chaos`.
SEED ?= 1
MINUTES ?= 5

BIN := .venv/bin
STAMP := .venv/.installed
# Versions of Triton for which `make test` compiles the GPU kernels beside the installed one; Linux
# alone has wheels of it.
TRITONS := $(if $(filter Linux,$(shell uname -s)),$(shell cat tests/triton/versions.txt))
TRITON_STAMPS := $(TRITONS:%=.venv/tritons/%/.installed)

.PHONY: help setup serve test test-long test-gpu check bench bench-gpu experiment chaos k8s-config clean

help:
	@echo 'make setup    make .venv with everything that serving and testing need'
	@echo 'make serve    serve a model: make serve ARGS="smollm2 --port 8000"'
	@echo 'make test     run the tests that need no GPU: make test ARGS="tests/engine -x"'
	@echo 'make test-long  the tests that take minutes each'
	@echo 'make check    lint, format, types, import rules'
	@echo 'make bench    measure PageRay beside vLLM, llama.cpp and transformers'
	@echo 'make test-gpu  the kernels and the engine on a CUDA device, with the Python at hand: no setup'
	@echo 'make bench-gpu  what they reach of what the device can do: make bench-gpu ARGS="--only attention Qwen3"'
	@echo 'make experiment  paging against a full reservation and contiguous slots'
	@echo 'make chaos    faults on a live cluster, none of which a client may see: make chaos SEED=7 MINUTES=10'
	@echo 'make k8s-config  write what the overlays in k8s/ serve, from their options.yaml'
	@echo 'make clean    remove .venv, caches and build output (models in the user cache stay)'

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(wildcard kernels/native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'PageRay needs Python 3.11 or later, and "$(PYTHON)" is not.' >&2; \
	  echo 'Install it, or name another one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12' >&2; \
	  exit 1; }
	@$(PYTHON) -m venv .venv || { \
	  echo '"$(PYTHON)" cannot make virtual environments.' >&2; \
	  echo 'Install its venv module (Debian: apt-get install python3-venv).' >&2; \
	  exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

serve: setup
	$(BIN)/pageray serve $(ARGS)

test: setup $(TRITON_STAMPS)
	$(BIN)/pageray pull smollm2
	$(BIN)/pytest -m 'not gpu and not long' $(ARGS)

test-long: setup
	$(BIN)/pageray pull smollm2
	$(BIN)/pytest -m long $(ARGS)

# Without dependencies: it lies before the installed one on the path of the compile gate alone.
.venv/tritons/%/.installed: | $(STAMP)
	rm -rf $(@D)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(@D) triton==$*
	@touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: setup
	$(BIN)/pageray pull smollm2
	$(BIN)/python -m tests.benchmarks.comparison $(ARGS)

# GPU images bring their own torch and triton, and need no Ray: these two run as they are.
test-gpu:
	$(PYTHON) -m pytest tests/gpu tests/triton --ignore=tests/triton/test_compile.py $(ARGS)

bench-gpu:
	$(PYTHON) -m tests.benchmarks.gpu $(ARGS)

experiment: setup
	$(BIN)/pageray pull smollm2
	$(BIN)/python -m tests.benchmarks.experiment $(ARGS)

chaos: setup
	$(BIN)/pageray pull smollm2
	$(BIN)/python -m tests.chaos --seed $(SEED) --minutes $(MINUTES) $(ARGS)

k8s-config: setup
	$(BIN)/pageray node-env | sed -n 's/^export //p' | grep -v AUTH_TOKEN > k8s/base/node.env
	for folder in k8s/overlays/*; do \
	  $(BIN)/pageray config --config $$folder/options.yaml > $$folder/serve-config.yaml || exit 1; \
	done

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find kernels engine cluster deployments tests -name __pycache__ -type d -prune -exec rm -rf {} +
