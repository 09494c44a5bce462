# make demo    a gateway on this machine to play with
# make test    the environment, then what CI checks (and after it test-compiled)
# make test-compiled  the same tests with the compiled build (docs/operations.rst), in an environment
#              of its own (ARGS=../tests/...)
# make faults  the long tests of what docs/reliability.rst promises (as root; some 20 minutes), which
#              write its table
# make bench   sockgw and others, side by side (docs/performance.rst; an hour; ARGS=--quick: minutes)
# make hotpath the calls that a request costs, by function; and the figures that make test compares
#              with are recorded anew
# make screenshot  the picture of the demonstration in the README (with chromium)
# make clean   removes what the others made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
READY_TEST := $(VENV)/ready-test
READY_BENCH := $(VENV)/ready-bench
VENV_COMPILED := .venv-compiled
READY_COMPILED := $(VENV_COMPILED)/ready

.PHONY: demo test test-compiled faults bench hotpath lint screenshot clean

demo: $(READY)
	$(BIN)/sockgw demo $(ARGS)

# Two at a time, but for those that look at times and memory of their own accord.
test: $(READY_TEST) lint
ifeq ($(ARGS),)
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/test_*.py tests/e2e
	$(BIN)/python -m pytest tests/faults
else
	$(BIN)/python -m pytest $(ARGS)
endif

# From elsewhere, or the sources here would come before what is installed. What is counted by function, docs
# and the bench, have nothing to do with what is compiled.
COMPILED_TESTS = $(addprefix $(CURDIR)/,$(filter-out tests/test_hotpath.py tests/test_docs.py \
	$(wildcard tests/test_bench*.py tests/e2e/test_bench*.py), \
	$(wildcard tests/test_*.py tests/e2e/test_*.py)))
PYTEST_COMPILED = cd $(VENV_COMPILED) && SOCKGW_COMPILED=1 bin/python -m pytest \
	-c ../pyproject.toml --rootdir .. -o pythonpath=tests/e2e

test-compiled: $(READY_COMPILED)
ifeq ($(ARGS),)
	$(PYTEST_COMPILED) -n 2 --dist loadfile $(COMPILED_TESTS)
else
	$(PYTEST_COMPILED) $(ARGS)
endif

faults: $(READY_TEST)
	SOCKGW_FAULTS=full $(BIN)/python -m pytest tests/faults/test_*.py tests/faults/full_*.py \
		tests/e2e/test_tcp.py::test_scp $(ARGS)

bench: $(READY_BENCH)
	$(BIN)/python -m bench $(ARGS)

lint: $(READY_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

hotpath: $(READY_TEST)
	$(BIN)/python tests/hotcalls.py --record

screenshot: $(READY_TEST)
	$(BIN)/python tests/e2e/screenshot.py docs/demo.png

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("sockgw needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(READY): setup.cfg setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(READY_TEST): setup.cfg setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $(READY) $@

$(READY_BENCH): setup.cfg setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $(READY) $@

$(READY_COMPILED): setup.cfg setup.py pyproject.toml build_backend.py $(wildcard sockgw/*.py sockgw/*/*.py)
	$(PYTHON) -m venv $(VENV_COMPILED)
	rm -rf build/lib build/lib.*
	SOCKGW_COMPILED=1 $(VENV_COMPILED)/bin/python -m pip install --quiet --disable-pip-version-check '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV_COMPILED) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
