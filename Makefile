# Everything a developer calls. `make setup` is instant when there is nothing to do, so all others begin with it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup up check lint fast test slow controlplane prometheus test-kubernetes test-agents bench soak docs dashboards lock clean

VENV ?= .venv
export VENV
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
KILLS ?= 1000
# the slow tests wait for other processes more than half of their time, so a worker more keeps the cores busy
SLOW_WORKERS ?= $(shell echo $$(($(WORKERS) + 1)))
# files in the order of tests/order.py, which begins with the longest
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

help: ## Show what there is.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | column -t -s '|'

setup: $(READY) ## Make the virtual environment (.venv) from requirements.lock.

$(READY): requirements.lock pyproject.toml deploy/bootstrap.sh
	@deploy/bootstrap.sh
	@touch $@

up: setup ## Start the whole hub on this machine; ARGS="--port 8080" passes options on.
	@$(BIN)/gpuhub up $(ARGS)

check: lint fast ## Format, lint, types, layers and the fast tests (under two minutes).

lint: setup
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports

fast: setup
	@$(PYTEST) -n $(WORKERS) --part fast tests/unit tests/property

test: check slow ## The check and everything else: databases, crashes, real processes.

slow: controlplane prometheus
	@$(PYTEST) -n $(SLOW_WORKERS) --part slow tests

controlplane: setup ## Build a Kubernetes control plane from Go modules, once per user.
	@$(BIN)/gpuhub controlplane build

prometheus: setup ## Build Prometheus and promtool from their Go module, once per user.
	@$(BIN)/gpuhub prometheus build

test-kubernetes: controlplane ## The tests against a real control plane.
	@$(PYTEST) -n $(SLOW_WORKERS) -m kubernetes tests

test-agents: setup ## The agents' tests, with real collectors on a fake NVIDIA driver (needs gcc).
	@$(PYTEST) -n $(WORKERS) tests/unit/agents tests/property/agents tests/integration/agents

bench: setup ## Measure; ONLY="name …" picks some.
	@$(BIN)/python -m tests.bench $(ONLY)

soak: setup ## Kill the programs 1,000 times (KILLS=n), live through a synthetic day, and let the oracle judge the books.
	@GPUHUB_CRASH_KILLS=$(KILLS) $(BIN)/python -m pytest -n $(WORKERS) --dist load tests/e2e/test_crash_random.py
	@$(BIN)/gpuhub up --trace synthetic --hours 24 --nodes 16 $(ARGS)

dashboards: setup ## Write Grafana's dashboards anew from deploy/grafana.
	@$(BIN)/python -m deploy.grafana

docs: setup ## Write what is generated from the code: the contract of metrics.
	@$(BIN)/python -m deploy.prometheus.contract docs/metrics.md

lock: setup ## Resolve requirements.lock anew from pyproject.toml.
	@for uv in $$(command -v uv || true) $(BIN)/uv build/bootstrap/bin/uv build/uv/bin/uv; do \
	  if [ -x "$$uv" ]; then break; fi; done; \
	  "$$uv" pip compile --quiet --universal --generate-hashes --no-header --all-extras --group dev \
	    pyproject.toml --output-file requirements.lock

clean: ## Remove the environment, caches and the hub's data.
	@rm -rf $(VENV) build .gpuhub .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage*
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
