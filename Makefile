# Two commands for a newcomer: `make demo` and `make test`. Each sets up .venv first: demo with what a user has, without
# torch and with the core for this CPU alone; test with everything.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
EVERYTHING = $(VENV)/.everything
# Without a C++ compiler or Python's headers the compiled core is left out, and torch does the work.
HEADERS = $(shell $(PYTHON) -c 'import glob, sysconfig; print(*glob.glob(sysconfig.get_path("include") + "/Python.h"))')
NATIVE := $(or $(SASREC_NATIVE),$(if $(and $(shell command -v $(CXX)),$(HEADERS)),1,0))
PYTEST = $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile
SOURCES = src tests benchmarks examples tools site
comma = ,

# The core's own tests, in a build folder, with further settings of CMake.
core_tests = cmake -S native/tests -B $(1) -DCMAKE_COMPILE_WARNING_AS_ERROR=ON $(2) && \
  cmake --build $(1) --parallel 2 && ctest --test-dir $(1) --output-on-failure
CHROMIUM = $(or $(shell command -v chromium),$(shell command -v chromium-browser),$(shell command -v google-chrome))
AS_ROOT = $(if $(filter-out 0,$(shell id -u)),sudo -n)
ARM = $(and $(shell command -v aarch64-linux-gnu-g++),$(shell command -v qemu-aarch64))

.PHONY: demo check test test-all lint types browser docs notebooks site native-test sanitize wheel dist clean

demo: $(or $(wildcard $(EVERYTHING)),$(VENV)/.light)  # what has everything is not made less
	$(BIN)/sasrec demo --preset fast --output runs/ml-100k --overwrite

check: lint types  # while you work
	$(PYTEST) -m "not slow and not outside and not variant"

test: lint types
	$(PYTEST) -m "not outside"

test-all: test
	$(BIN)/pytest -m outside

lint: $(EVERYTHING)
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/clang-format --dry-run --Werror $(wildcard native/*.h native/*.cpp native/*/*.h native/*/*.cpp)

types: $(EVERYTHING)
	$(BIN)/mypy

# For tests/serving/test_page.py, which is skipped without it: Debian's chromium, where this user may install it.
browser:
	@[ -n "$(CHROMIUM)" ] || { $(AS_ROOT) apt-get update -qq && \
	  $(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium; } > /dev/null 2>&1 || \
	  echo "chromium could not be installed, so the tests of the web page will be skipped"

docs: $(EVERYTHING)  # the generated pages: docs/cli.md and docs/config.md
	$(BIN)/python tools/generate_docs.py

notebooks: $(EVERYTHING)  # run, for their outputs on the site
	$(BIN)/python tools/run_notebooks.py

site: $(or $(wildcard $(EVERYTHING)),$(VENV)/.site)  # the documents as a web site, in build/site/html
	$(BIN)/python tools/build_site.py

INSTALL = SASREC_NATIVE=$(NATIVE) $(BIN)/pip install --quiet --constraint constraints.txt
BUILT_FROM = pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*.*)
NO_CORE = (no $(CXX), no Python.h, or SASREC_NATIVE=0)
WITH_CORE := $(filter-out 0,$(NATIVE))
PRINT_SITE = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")
PRINT_DEPENDENCIES = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")

# Packages are fetched while the core is compiled; Python compiles those modules that are used, when they are.
$(VENV)/.light: $(BUILT_FROM)
	@echo "installing into $(VENV), a minute or two:" \
	  "$(if $(WITH_CORE),the core is compiled for this CPU,torch takes the place of the compiled core $(NO_CORE))"
	@$(PYTHON) -m venv $(VENV)
ifdef WITH_CORE
	@$(BIN)/python -c '$(PRINT_DEPENDENCIES)' > $(VENV)/requirements.txt
	@SASREC_VARIANTS=fastest $(INSTALL) --no-deps --editable . & core=$$!; \
	  $(INSTALL) --no-compile --requirement $(VENV)/requirements.txt; packages=$$?; \
	  wait $$core && exit $$packages
else
	@$(INSTALL) --editable ".[torch]"
endif
	@touch $@

$(EVERYTHING): $(BUILT_FROM)
	@echo "installing everything$(if $(WITH_CORE),, but the compiled core $(NO_CORE)) into $(VENV), some minutes"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --config-settings=cmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON --editable ".[test]"
	touch $@

# The site shows names and docstrings: neither the core nor torch is needed. What a demo has installed stays.
$(VENV)/.site: $(BUILT_FROM)
	@echo "installing into $(VENV) what the site needs, a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c '$(PRINT_SITE)' > $(VENV)/requirements-site.txt
	@$(INSTALL) --requirement $(VENV)/requirements-site.txt
	@[ -e $(VENV)/.light ] || SASREC_NATIVE=0 $(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

# The core without Python: each variant that this CPU runs, and aarch64 where a compiler and an emulator are installed.
native-test:
	$(call core_tests,build/native-test)
ifeq ($(ARM),)
	@echo "aarch64 is left out: g++-aarch64-linux-gnu and qemu-user are not installed"
else
	$(call core_tests,build/native-test-aarch64,-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static \
	  -DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64)
endif

# Memory, undefined behaviour and threads. Python itself is not instrumented, so the runtime is loaded before it; its own
# interpreter with a path of its own sees the instrumented core and not the editable installation.
sanitize: $(EVERYTHING)
	$(call core_tests,build/sanitize-threads,-DSASREC_SANITIZE=thread -DSASREC_VARIANTS=portable)
	$(call core_tests,build/sanitize-memory,-DSASREC_SANITIZE=address$(comma)undefined)
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/sanitize-python --config-settings=install.strip=false \
	  --config-settings=build-dir=build/sanitize-package --config-settings=cmake.define.SASREC_SANITIZE=address,undefined .
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  PYTHONPATH=build/sanitize-python:$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))') \
	  $(PYTHON) -m pytest tests/engine/test_native.py tests/ranking/test_index.py

wheel: $(EVERYTHING)  # for machines with this one's C library or a newer one, tried out in an environment of its own
	$(BIN)/python tools/build_wheel.py dist

# The files of a release, made of the sdist and tried on each Python from 3.11 to 3.13 that is here; nothing is uploaded.
# DRAFT=1 makes them of a checkout that is no release: changes without a version, or without a commit.
dist: $(EVERYTHING)
	$(BIN)/python tools/release.py dist $(if $(DRAFT),--draft)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
