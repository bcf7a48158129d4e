# Two commands on a fresh machine: `make demo` runs the main job, `make test` passes. Both do their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export OMP_WAIT_POLICY := passive
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: demo up down test test-fast test-slow lint lock setup clean

demo: $(READY)
	hearken build --clone --name demo

# Prefect server, workers and deployments of this checkout in the background; HEARKEN_PREFECT_PORT=4201 make up
up: $(READY)
	hearken up

down: $(READY)
	hearken down

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	test -e $@ || rm -rf $(VENV)  # a set-up that was cut off starts again
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lint: $(READY)
	ruff format --check .
	ruff check .
	mypy

test: lint
	pytest -m "not slow"

test-fast: $(READY)
	pytest -m "not slow and not server"

test-slow: $(READY)
	pytest -m slow

# After a change of the dependencies in pyproject.toml: a new environment, resolved anew and written down.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet . pytest mypy ruff hypothesis types-PyYAML setuptools wheel
	.venv-lock/bin/pip freeze --all --exclude hearken --exclude pip | sed 's/+cpu//' > requirements.lock
	rm -rf .venv-lock

# What comes again by itself; never .hearken, which holds the service: database, releases, score log.
clean:
	rm -rf reports metrics .mypy_cache .ruff_cache
