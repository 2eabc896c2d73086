# Everything from a bare checkout: each target creates .venv and installs what it needs. `make help` lists the targets.

PYTHON ?= python3
TORCH ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
DEBUGGER := .venvs/debugger

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train test lint docs debugger bench release-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'ARGS passes arguments on: make train ARGS="data.root=my_dogs", make test ARGS="-m '"'not slow'"'"'
	@echo 'PYTHON selects the interpreter, 3.11 to 3.13: make PYTHON=python3.12 test'
	@echo 'TORCH=cpu takes torch from the index for CPUs, several GB less, into a new .venv: make train TORCH=cpu'

train: $(RUN) ## a first run that learns, on generated images (experiment=quickstart), or with the settings in ARGS
	$(BIN)/python -m dogbreed.train $(or $(ARGS),experiment=quickstart)

test: lint docs $(DEBUGGER)/.installed ## style, types, documentation and all tests; ARGS="-m 'not slow'" for the quick ones
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 30 $(ARGS)

lint: $(DEV) ## style and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DEV) ## build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

debugger: $(DEBUGGER)/.installed ## an environment for the library of SageMaker Debugger, in .venvs/debugger
	@test -f $< || { echo 'There is no environment for the debugger: see the messages above.' >&2; exit 1; }
	@echo 'Ready: $(DEBUGGER)/bin/python -m dogbreed.train debugger.enabled=true'

bench: $(DEV) ## measure, and write benchmarks/results/*.local.json (--record: the tracked ones)
	$(BIN)/python -m benchmarks $(ARGS)

# The wheel is installed into an environment of its own, which borrows only the dependencies, so that torch is not
# installed twice; dogbreed itself comes from the wheel, since the quickstart runs in an empty folder.
release-check: $(DEV) ## build the package, check it, install the wheel and run the quickstart from it
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m venv --clear build/venv
	build/venv/bin/python -m pip install --quiet --no-deps dist/*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(build/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	mkdir build/empty
	cd build/empty && ../venv/bin/python -c 'import dogbreed; assert "build/venv" in dogbreed.__file__, dogbreed.__file__'
	cd build/empty && ../venv/bin/dogbreed-train experiment=quickstart output_dir=run $(ARGS)
	cd build/empty && ../venv/bin/dogbreed-predict run/model "$$(find data -name '*.jpg' | head -n 1)"

clean: ## remove what tools leave behind; .venv, data/ and outputs/ stay
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# torch and torchvision are installed by one pip call, so that pip selects versions that belong together. With TORCH=cpu
# they come from the index of that name, and satisfy the call that follows.
TORCH_FIRST = $(if $(TORCH),$(BIN)/python -m pip install torch torchvision \
	--index-url https://download.pytorch.org/whl/$(TORCH))

$(RUN): pyproject.toml $(VENV)/.made
	$(TORCH_FIRST)
	$(BIN)/python -m pip install --editable '.[lite0,serve]'
	@touch $@

$(DEV): pyproject.toml $(VENV)/.made
	$(TORCH_FIRST)
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@ $(RUN)

# smdebug pins an old protobuf, so it has an environment of its own, which finds everything else (torch, several GB) in
# the first one.
$(DEBUGGER)/.installed: $(DEV)
	$(BIN)/python -m venv --clear $(DEBUGGER)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(DEBUGGER)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
	$(DEBUGGER)/bin/python -m pip install --editable '.[debugger]' || \
		{ rm -rf $(DEBUGGER); echo 'smdebug could not be installed (part of it is C); its tests will be skipped' >&2; }
	@test ! -d $(DEBUGGER) || touch $@

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || \
		{ echo '$(PYTHON) was not found; install Python 3.11 to 3.13, or name one: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); 3.11 to 3.13 is needed: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
