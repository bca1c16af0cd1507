# Two commands for a newcomer: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SOURCES = src tests benchmarks examples tools

.PHONY: demo test lint types tests docs clean

demo: $(VENV)/.installed
	$(BIN)/sasrec demo --output runs/ml-100k --overwrite

test: lint types tests

lint: $(VENV)/.tested
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/ruff format --check $(wildcard $(SOURCES))

types: $(VENV)/.tested
	$(BIN)/mypy

tests: $(VENV)/.tested
	$(BIN)/pytest

docs: $(VENV)/.tested  # the generated pages: docs/cli.md and docs/config.md
	$(BIN)/python tools/generate_docs.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
