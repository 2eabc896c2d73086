# Everything from a bare checkout: each target makes .venv and installs what it needs. `make help` lists the targets.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
DEBUGGER := .venvs/debugger

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train test lint bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'ARGS passes arguments on: make train ARGS="data.root=my_dogs", make test ARGS="-m '"'not slow'"'"'
	@echo 'PYTHON picks the interpreter, 3.11 to 3.13: make PYTHON=python3.12 test'

train: $(RUN) ## trains on made-up photographs (experiment=quickstart), or as ARGS says
	$(BIN)/python -m dogbreed.train $(or $(ARGS),experiment=quickstart)

test: lint $(DEBUGGER)/.installed ## style, types and the whole suite; ARGS="-m 'not slow'" for the quick part
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

lint: $(DEV) ## style and types alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(DEV) ## measures, and writes benchmarks/results/*.json
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## removes what tools leave behind; .venv, data/ and outputs/ stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# torch and torchvision come in one pip call, so that pip picks a pair that belongs together.
$(RUN): pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --editable .
	@touch $@

$(DEV): pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@ $(RUN)

# smdebug pins a protobuf that others have left behind, so it lives apart, in an environment that finds everything else
# (torch, several GB) in the first one.
$(DEBUGGER)/.installed: $(DEV)
	$(BIN)/python -m venv --clear $(DEBUGGER)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(DEBUGGER)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
	$(DEBUGGER)/bin/python -m pip install --editable '.[debugger]' || \
		{ rm -rf $(DEBUGGER); echo 'smdebug could not be installed (a part of it is C); its tests will be skipped' >&2; }
	@test ! -d $(DEBUGGER) || touch $@

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || \
		{ echo 'There is no $(PYTHON); install Python 3.11 to 3.13, or name one: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); 3.11 to 3.13 is needed: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
