# Two commands for a newcomer - `make demo` and `make test` - and what a developer needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-kernels test-installs test-extras docs lint format clean

demo: $(STAMP)  ## restyle two clips; results in demo/
	$(BIN)/stillframe demo --out demo

# One worker more than there are cores, since tests also wait, for processes and for clocks. Bytecode
# is kept even where the environment says not to: to rewrite the assertions of all tests takes each
# worker seconds.
WORKERS = $(shell expr `getconf _NPROCESSORS_ONLN` + 1)
test: $(STAMP)  ## the whole test suite
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(WORKERS) --maxprocesses 8

test-kernels: $(STAMP)  ## kernels that take Triton a minute, interpreted against their references and compiled ahead
	$(BIN)/python -m pytest -q -n 2 -m "slow and not gpu" tests/test_fused_kernels.py tests/test_compiling.py

test-installs: $(STAMP)  ## the wheel with the newest of everything, on every Python there is
	VENV=$(VENV) .ci/installs

test-extras: $(STAMP)  ## what the suite skips for want of packages, and the page in a browser
	VENV=$(VENV) .ci/extras

docs: build/docs-env/.installed  ## the site, with warnings as errors; in build/site
	NO_MKDOCS_2_WARNING=1 build/docs-env/bin/mkdocs build

build/docs-env/.installed: pyproject.toml
	$(PYTHON) -m venv build/docs-env
	build/docs-env/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	build/docs-env/bin/python -m pip install --quiet --group docs
	touch $@

lint: $(STAMP)  ## formatting, lint (of the Dockerfile, too) and types
	test ! -x $(BIN)/hadolint || $(BIN)/hadolint Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# one environment for everything, with the versions in constraints.txt
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]" --group dev
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache
