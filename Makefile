# One virtual environment, made once: every target below depends on its stamp.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# Use the pyright that its wheel carries: no download at lint time.
export PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help install demo test test-slow lint format clean
help:
	@echo "make demo       install, then fit a flow to a bundled data set and show the result"
	@echo "make test       install, then run the test suite"
	@echo "make test-slow  the long tests too"
	@echo "make lint       ruff, mypy, pyright, import-linter"
	@echo "make format     let ruff format and fix"
	@echo "make clean      remove the virtual environment and caches"

install: $(STAMP)
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/pushforward fit digits --out demo/$$(date +%Y%m%d-%H%M%S) --seed 0 --wandb offline train.seconds=60

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
