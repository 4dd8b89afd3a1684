# Everything a fresh machine needs: Python 3.11 or newer and a package index.
TORCH ?= 2.13.0
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_FLAGS := $(if $(FULL),--full,)
REPRODUCTIONS := $(if $(SYSTEM),$(subst -,_,$(SYSTEM)),$(filter-out __init__,$(basename $(notdir $(wildcard reproductions/*.py)))))

.PHONY: help setup demo test test-slow check format bench reproduce clean

help:
	@echo "make demo       install, merge the bundled experts, evaluate, write build/demo/report.html (FULL=1: all queries)"
	@echo "make test       install, run the test suite (under 10 minutes on 2 cores)"
	@echo "make test-slow  kill tests, servers, browser, long training"
	@echo "make check      ruff, mypy --strict, import contracts"
	@echo "make bench      speed and memory against floor and incumbent; all methods on real experts"
	@echo "make reproduce  measure a published system's claims again: SYSTEM=pcb-merging FLAGS=--quick (without SYSTEM: all)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch==$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[text,bench,fitting,search,llm,demo]"
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -e ".[text,bench,fitting,search,llm,serve,postgres,demo,dev]"
	touch $@

setup: $(VENV)/.dev

demo: $(VENV)/.demo
	$(BIN)/consilience demo --out build/demo $(DEMO_FLAGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest --disable-warnings -n 2 --dist loadfile tests

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest --disable-warnings -m slow tests

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/merge_speed.py
	$(BIN)/python benchmarks/spectral_speed.py
	$(BIN)/python benchmarks/bundle_speed.py
	$(BIN)/python benchmarks/retrieval_speed.py
	$(BIN)/python benchmarks/encode_speed.py
	$(BIN)/python benchmarks/batch_search.py
	$(BIN)/python benchmarks/retrieval_quality.py
	$(BIN)/python benchmarks/all_methods.py
	$(BIN)/python benchmarks/composition.py

reproduce: $(VENV)/.demo
	@for system in $(REPRODUCTIONS); do $(BIN)/python -m reproductions.$$system $(FLAGS) || exit; done

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
