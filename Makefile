# Works on a fresh machine with Python and make: the first target that runs creates .venv.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
TEST_PROCESSES ?= auto

.PHONY: help demo test check format site clean

help:
	@echo "make demo    pre-train, probe and detect on built-in tissue; pictures in demo/"
	@echo "make test    run the tests"
	@echo "make check   ruff, mypy, import-linter"
	@echo "make format  format the code with ruff"
	@echo "make site    build the docs as a site in site/"
	@echo "make clean   remove .venv and the caches"

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "densepath needs Python 3.11 or newer; give its path: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/densepath demo --out demo

# One thread per process: torch's threads would compete for the cores.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --maxprocesses 8 --dist worksteal

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

site: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
