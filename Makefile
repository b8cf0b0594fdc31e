# Every target sets itself up: a fresh clone and Python 3.11 are enough.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PLAIN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
LOWEST := .venv-lowest
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help setup demo test test-slow test-lowest lint options bench clean

help:  ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

setup: $(DEV)  ## Create .venv with nulltext, all its extras, and what tests and linters need.

$(PLAIN): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "nulltext needs Python 3.11 or newer; found: $(PYTHON). Set PYTHON=..."; exit 2; }
	@echo "1/2 Installing nulltext and what it needs into $(VENV); PyTorch is most of it …"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(DEV): $(PLAIN)
	@echo "Adding the extras, the tests' tools and the linters to $(VENV) …"
	$(PIP) --quiet -e '.[dev]'
	@touch $@

demo: $(PLAIN)  ## Edit the example photo four ways; pictures land in demo/.
	@echo "2/2 Inverting and editing examples/dahlia.jpg …"
	$(BIN)/python examples/demo.py

WORKERS ?= 2
# A process each, and a thread each, so that they do not wait for each other's cores.
test: setup  ## Run the test suite: make test WORKERS=2.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: setup  ## Run the slow tests (kills, browser, a checkpoint of real size): 3 GB of disk, 7 of memory.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

CORE := tests/test_floors.py $(patsubst %,tests/models/test_%.py,fingerprint load interop)
# Its own environment: 3 GB to download, since old releases of torch come with CUDA.
test-lowest: $(LOWEST)/.installed  ## Run core tests on the lowest releases that pyproject.toml allows.
	$(LOWEST)/bin/nulltext doctor
	$(LOWEST)/bin/nulltext edit examples/dahlia.jpg --source "a photo of an orange flower" \
	  --target "a photo of a red flower" --method ddim --steps 4 -o $(LOWEST)/red.png
	NULLTEXT_TEST_LOWEST=1 $(LOWEST)/bin/python -m pytest $(CORE)

$(LOWEST)/.installed: pyproject.toml
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[test]'
	@touch $@

lint: setup  ## Run ruff, mypy and import-linter.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

options: $(PLAIN)  ## Write the option tables of README and docs/options.md anew.
	$(BIN)/python docs/options_tables.py README.md docs/options.md

LIMIT ?= 32
bench: $(PLAIN)  ## Measure reconstruction on photos: make bench DATA=folder LIMIT=32.
	@test -n "$(DATA)" || { echo "Which photos? make bench DATA=folder-with-labels.jsonl"; exit 2; }
	$(BIN)/python benchmarks/reconstruction.py --data $(DATA) --limit $(LIMIT)

clean:  ## Remove everything that the other targets made.
	rm -rf $(VENV) $(LOWEST) demo build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
