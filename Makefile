# Every target sets itself up: a fresh clone and Python 3.11 are enough.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-slow lint bench clean

help:  ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Create .venv with the pinned dependencies and nulltext in it.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "nulltext needs Python 3.11 or newer; found: $(PYTHON). Set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## Edit the example photo four ways; pictures land in demo/.
	$(BIN)/python examples/demo.py

WORKERS ?= 2
# A process each, and a thread each, so that they do not wait for each other's cores.
test: setup  ## Run the test suite: make test WORKERS=2.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: setup  ## Run the tests of checkpoints of real size: 3 GB of disk, 7 GB of memory.
	$(BIN)/python -m pytest -m slow

lint: setup  ## Run ruff and mypy.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

LIMIT ?= 32
bench: setup  ## Measure reconstruction on photos: make bench DATA=folder LIMIT=32.
	@test -n "$(DATA)" || { echo "Which photos? make bench DATA=folder-with-labels.jsonl"; exit 2; }
	$(BIN)/python benchmarks/reconstruction.py --data $(DATA) --limit $(LIMIT)

clean:  ## Remove everything that the other targets made.
	rm -rf $(VENV) demo build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
