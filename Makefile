# One virtual environment, made once: every target below depends on its stamp.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
BENCH_STAMP := $(VENV)/installed-bench
# Use the pyright that its wheel carries: no download at lint time.
export PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help install demo test test-slow bench lint format clean
help:
	@echo "make demo       install, then fit a flow to a bundled data set and show the result"
	@echo "make test       install, then run the test suite"
	@echo "make test-slow  the long tests too"
	@echo "make bench      the benchmarks in their quick forms, beside the peers (under 10 minutes)"
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

# A process for each core, each with one thread: threads that wait for each other spin.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-slow: $(STAMP)
	$(PYTEST)

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	@touch $@

# Without its data folder, the one about quality says so and ends with 2: no reason to leave out the others.
bench: $(BENCH_STAMP)
	$(BIN)/python benchmarks/step.py --quick --out benchmarks/results/quick
	$(BIN)/python benchmarks/quality.py --quick --out benchmarks/results/quick || test $$? -eq 2
	$(BIN)/python benchmarks/scaling.py --quick --out benchmarks/results/quick
	$(BIN)/python benchmarks/gpu.py --quick --out benchmarks/results/quick
	$(BIN)/python benchmarks/command.py --quick --out benchmarks/results/quick

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
