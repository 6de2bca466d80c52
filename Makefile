# `make demo` and `make test` do their own set-up in a virtual environment.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
WORKERS ?= 2
SITE ?= site
BIN = $(VENV)/bin

.PHONY: demo test lint docs clean

demo: $(VENV)/installed
	$(BIN)/deepwas demo --out $(DEMO)

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/python-ok:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "deepwas needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Use: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/python-ok pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/python-ok pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/installed

docs: $(VENV)/python-ok
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/mkdocs build --strict --site-dir $(SITE)

clean:
	rm -rf $(VENV) $(DEMO) $(SITE) dist build .pytest_cache .mypy_cache .ruff_cache
