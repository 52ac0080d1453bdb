# make demo: install and build the quickstart bundle · make test: install and run the tests · make lint: ruff and mypy
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint thin

demo: .venv/.installed
	$(BIN)/athe-export build recipes/quickstart.yaml

test: .venv/.installed
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# the wheel in a venv that has no torch: what a device gets
thin: .venv/.installed
	scripts/check_thin_install.sh artifacts/bundles/quickstart

.venv/.installed: pyproject.toml scripts/constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install -q -c scripts/constraints.txt -e ".[build,dev]"
	@touch $@
