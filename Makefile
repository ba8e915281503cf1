# `make demo`, `make test` and `make test-slow` need nothing but Python 3.10 or newer and make.
# Each makes a virtual environment in the checkout; a stamp file says when that is done.
#
#   make demo PYTHON=python3.12       another interpreter
#   make test PYTEST="-k clock"       other arguments for pytest
#   make demo CONSTRAINTS=            without the pinned versions
#   make compat COMPAT="oldest newest" these environments alone (tests/compat/environments.yaml)

PYTHON ?= python3
VENV ?= .venv
OUT ?= demo_output
CONSTRAINTS ?= -c constraints.txt
PYTEST ?= -n 2
BENCH ?= --help
COMPAT ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS)
# Workers of pytest and threads of torch would otherwise compete for the same cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow compat lint types bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /: /'

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "sdtm_fx needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	$(INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	$(INSTALL) -e '.[dev]'
	touch $@

demo: $(VENV)/.demo  ## dense and rewritten images side by side, in demo_output/
	$(BIN)/sdtm-fx demo --out $(OUT)

test: lint types  ## style, types and the tests that take less than ten seconds each
	$(ONE_THREAD) $(BIN)/python -m pytest -m "not slow" $(PYTEST)

test-slow: $(VENV)/.dev  ## the other tests: many compile
	$(ONE_THREAD) $(BIN)/python -m pytest -m slow $(PYTEST)

compat: $(VENV)/.dev  ## the model matrix with the oldest and newest torch and diffusers; writes docs/compatibility.md
	$(ONE_THREAD) $(BIN)/python -m tests.compat $(COMPAT)

lint: $(VENV)/.dev  ## ruff, as linter and as formatter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A type checker sees sdtm_fx.passes only where it lies in an installed wheel: in the checkout it is passes/.
# A folder of links shows it the tree of the wheel.
types: $(VENV)/.dev  ## mypy --strict
	rm -rf build/types && mkdir -p build/types/sdtm_fx
	ln -s $(CURDIR)/sdtm_fx/* $(CURDIR)/passes $(CURDIR)/recipes build/types/sdtm_fx/
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p sdtm_fx

bench: $(VENV)/.dev  ## measure; BENCH holds the arguments
	$(BIN)/sdtm-fx bench $(BENCH)

clean:  ## remove the environment and everything that tools leave
	rm -rf $(VENV) build dist $(OUT) *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find sdtm_fx passes recipes tests -name __pycache__ -type d -prune -exec rm -rf {} +
