# make demo: install and build the quickstart bundle · make test: install and run the tests · make lint: ruff and mypy
# make test-device: the tests against sshd and an emulated Pi, which make test leaves out
# make thin: installs without torch · make pi: the quickstart on an emulated Raspberry Pi 4
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-device lint thin pi

demo: .venv/.installed
	$(BIN)/athe-export build recipes/quickstart.yaml

test: .venv/.installed
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not device"

test-device: .venv/.installed
	$(BIN)/python -m pytest -n auto --dist loadfile -m device

lint: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# the wheel in venvs that have one engine and no torch: what a device gets. The quickstart is built first if it is not there,
# or older than its recipe.
thin: .venv/.installed artifacts/bundles/quickstart/manifest.json
	PYTHON=$(PYTHON) scripts/check_thin_install.sh artifacts/bundles/quickstart

# what .ci/run does too; needs a Debian host, as root where qemu is not installed yet
pi: .venv/.installed artifacts/bundles/quickstart/manifest.json
	scripts/check_pi.sh artifacts/bundles/quickstart

artifacts/bundles/quickstart/manifest.json: recipes/quickstart.yaml
	$(MAKE) demo

# The two variables pin the isolated environment in which pip builds this package: up to 25.2 pip reads the first there,
# later the second.
.venv/.installed: pyproject.toml scripts/constraints.txt
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=scripts/constraints.txt PIP_BUILD_CONSTRAINT=scripts/constraints.txt $(PIP) install -q -e ".[build,dev]"
	@touch $@
