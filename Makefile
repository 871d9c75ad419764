# make demo and make test do everything from a fresh clone; they need make and Python 3.11 or newer.
# Other Python: make test PYTHON=/path/to/python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.synced
SHELL := /bin/bash

# The image of a cluster's nodes; GPU machines are amd64, whatever this one is.
IMAGE ?= maskrcnn-ray:0.1.0
PLATFORM ?= linux/amd64

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check fuzz architecture format lock image

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## Make .venv with the locked packages (some 6 GB); nothing to do when it is current

# The stamp is written last, so a set-up that broke half-way is done again. `venv --clear` only where the old one is no
# use: uv then has little to do. Compiling takes 20 s once and halves every start of Python here, and Ray starts many.
$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is not Python 3.11 or newer ($$($(PYTHON) --version 2>/dev/null || echo not found)); name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@rm -f $@
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || { \
	  echo "Making $(VENV) ..."; \
	  $(PYTHON) -m venv --clear $(VENV) || { \
	    echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }; \
	  $(BIN)/python -m pip install --quiet uv || { \
	    echo "error: pip could not install uv; check the network or the package index" >&2; exit 2; }; }
	@echo "Installing the locked packages (the first time some 6 GB, a few minutes) ..."
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/python -m uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	@touch $@

demo: setup ## Train, label and score on generated images; writes to demo/
	@$(BIN)/python -m jobs.demo

test: check ## Everything that must pass before a change goes in: check, then the tests
	@$(BIN)/python -m pytest

test-all: check ## The tests that take many minutes too: chaos with killed processes, every combination of the detector's parts
	@$(BIN)/python -m pytest -m ""

fuzz: setup ## Damage everything that is read, at random, a few minutes; CASES=20000 for longer, FIRST=4000 for other damage
	@$(BIN)/python -m tests.fuzz $(if $(CASES),--cases $(CASES)) $(if $(FIRST),--first $(FIRST))

check: setup ## Format, lint and types
	@$(BIN)/ruff format --check --quiet . || { echo "Formatting differs in the files above; make format mends it." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

architecture: setup ## The rooms of the code, their imports, long files and functions; draws docs/architecture.svg
	@$(BIN)/python -m tests.architecture --output docs/architecture.svg

format: setup ## Format the code and mend what the linter can
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format .

lock: setup ## Resolve the packages of pyproject.toml anew into requirements.lock
	@$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --extra dev pyproject.toml -o requirements.lock

image: ## Build deploy/Dockerfile with Docker or Podman: make image IMAGE=REGISTRY/maskrcnn-ray:0.1.0
	@builder=$$(command -v docker || command -v podman) || { \
	  echo "error: neither docker nor podman is here to build $(IMAGE); install one of them, or run this where one is" >&2; exit 2; }; \
	"$$builder" build --platform $(PLATFORM) --file deploy/Dockerfile --tag $(IMAGE) .
