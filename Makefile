# Two commands for a newcomer: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Without a C++ compiler the compiled core is left out, and torch does the work.
NATIVE := $(or $(SASREC_NATIVE),$(if $(shell command -v $(CXX)),1,0))
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

$(VENV)/.installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*)
	$(PYTHON) -m venv $(VENV)
	@[ "$(NATIVE)" != 0 ] || echo "no C++ compiler ($(CXX)): installing without the compiled core"
	SASREC_NATIVE=$(NATIVE) $(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["test"], sep="\n")' \
	  > $(VENV)/test-requirements.txt  # the package itself need not be built again
	$(BIN)/pip install --quiet --constraint constraints.txt --requirement $(VENV)/test-requirements.txt
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
