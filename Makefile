# make quickstart   the whole pipeline in miniature, on text that is already there
# make test         all tests that need neither a network nor a GPU
# make lint         style, types, and a report of long files
# make systems      every system pre-trains for a few minutes; a table in docs/results/systems.md
# make bench        speed of the CPU half, and against the Hugging Face Trainer
#
# Each makes .venv first; that is skipped while pyproject.toml and constraints.txt are as they were.
# Another interpreter: make test PYTHON=python3.12

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p $(NEW_ENOUGH) 2>/dev/null && { echo $$p; exit; }; done; echo python3)
WORKERS ?= 2
LONG := 300

BIN := .venv/bin
READY := .venv/.ready

.PHONY: help quickstart test lint bench systems setup clean

help:
	@sed -n 's/^# \(make [a-z]* .*\)/\1/p' Makefile

quickstart: $(READY)
	$(BIN)/ziggurat run recipes/quickstart.yaml

# One OpenMP thread a worker: with two on a busy machine threads wait for each other at barriers, and single
# steps take 5 to 10 times as long.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu and not net"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@echo "files of more than $(LONG) lines (a report, not a rule):"
	@find src tests benchmarks -name '*.py' | xargs wc -l | sort -rn | awk '$$1 > $(LONG) && $$2 != "total" {print "  " $$1, $$2}'

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/forming.py
	$(if $(wildcard benchmarks/vs_hf.py),$(BIN)/python benchmarks/vs_hf.py)

systems: $(READY)
	$(BIN)/python benchmarks/systems.py --write docs/results/systems.md

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) $(NEW_ENOUGH) 2>/dev/null || { \
		echo "ziggurat needs Python 3.11 or newer, and $(PYTHON) is not: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@test ! -x $(BIN)/python || $(BIN)/python $(NEW_ENOUGH) 2>/dev/null || { \
		echo ".venv is of a Python older than 3.11: make clean, then the same again"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
