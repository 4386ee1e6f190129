# make            build .venv, run the default study, write its report
# make test       build .venv, run the tests (all but the slow ones)
# make test-slow  run the slow ones alone (minutes each)
# make test-all   run both
# make lint       formatting, types and the workflow's own linter
# make docs       run the notebook, build the documentation as a site in build/site
# make clean      remove .venv, caches and what Snakemake remembers; results stay

PYTHON ?= python3
CORES ?= all
# Two workers suit two cores: each test process computes with one thread. Tests of one file
# stay together, so that what they share is made once.
TEST_WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
REPORT := results/report.html
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

.DEFAULT_GOAL := run
.PHONY: run install test test-slow test-all lint docs clean

run: install
	$(BIN)/snakemake --cores $(CORES)
	$(BIN)/snakemake --cores $(CORES) --report $(REPORT)
	@echo "The report is in $(CURDIR)/$(REPORT)"

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "tokinfo needs Python 3.11 or newer; $(PYTHON) is missing or older." >&2; \
	    echo "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "$(PYTHON) cannot make environments (on Debian: apt install python3-venv)." >&2; \
	    exit 1; }
	@echo "Installing the pinned packages into $(VENV) (minutes, the first time)"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet \
	    --no-deps --no-build-isolation -e .
	@touch $@

test: install
	$(PYTEST) -m "not slow"

test-slow: install
	$(PYTEST) -m slow

test-all: install
	$(PYTEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict tokinfo
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint

docs: install
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r docs/requirements.lock
	$(BIN)/python docs/execute.py docs/quickstart.ipynb build/quickstart.ipynb
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site is in $(CURDIR)/build/site"

clean:
	rm -rf $(VENV) .snakemake build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
