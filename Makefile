# Two commands for a newcomer - `make demo` and `make test` - and what a developer needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-installs test-extras lint format clean

demo: $(STAMP)  ## restyle a real clip in two styles; results in demo/
	$(BIN)/stillframe demo --out demo

test: $(STAMP)  ## the whole test suite
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8

test-installs: $(STAMP)  ## the wheel with the newest of everything, on every Python there is
	VENV=$(VENV) .ci/installs

test-extras: $(STAMP)  ## what the suite skips for want of packages, and the page in a browser
	VENV=$(VENV) .ci/extras

lint: $(STAMP)  ## formatting, lint and types
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
