# The commands to remember. Each first makes .venv where it is missing, or where pyproject.toml or constraints.txt is newer.
# Another Python: `make test PYTHON=python3.13`.
PYTHON ?= python3
BIN := .venv/bin
DEMO := .venv/installed-demo
DEV := .venv/installed-dev
# Tiny models gain nothing from threads; processes of one thread each share out the files instead.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all check bench

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s%s\n", $$1, $$2 }' Makefile

demo: $(DEMO)  ## train a tiny model on real text and show what it learnt, in ./demo
	$(BIN)/moeut demo

test: $(DEV)  ## run the tests, without the slow ones
	$(PYTEST) -m "not slow"

test-all: $(DEV)  ## run every test
	$(PYTEST)

check: $(DEV)  ## check format, style and types
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m ruff check
	$(BIN)/python -m pyright

bench: $(DEV)  ## measure speed and memory; what this machine cannot measure says so and ends with code 2
	@set -e; for benchmark in $(wildcard benchmarks/*.py); do echo "$$benchmark"; $(BIN)/python "$$benchmark" || [ $$? -eq 2 ]; done

$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) .ci/install.py plot
	@touch $@

$(DEV): pyproject.toml constraints.txt
	$(PYTHON) .ci/install.py dev,plot
	@touch $@ $(DEMO)
