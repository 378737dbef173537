# Every target does its own setup. Root gets missing system packages installed; other users get the command to do so.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := daemon/requirements
LOCK := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate --no-config

# Debian's names. The demo needs none of them: it plays a file.
CAPTURE_PACKAGES := libportaudio2 libasound2-plugins
TEST_PACKAGES := $(CAPTURE_PACKAGES) pulseaudio pulseaudio-utils flite festival festvox-us-slt-hts sox systemd \
	libpam-systemd dbus iproute2 procps libnss-myhostname tinyproxy-bin

.PHONY: help soak demo run test check suite crash lint audit format bench requirements clean

help:
	@echo "make demo     play a recorded conversation through the whole recorder"
	@echo "make test     linting, types and all tests, as in CI"
	@echo "make check    linting, types and the fast tests, in two minutes"
	@echo "make crash    kill the daemon two hundred times, and at every step of its journal"
	@echo "make suite    all tests"
	@echo "make lint     linting and types only"
	@echo "make audit    search the installed packages for known vulnerabilities"
	@echo "make format   format the code"
	@echo "make soak     record a simulated day of audio, instead of two hours"
	@echo "make bench    run the benchmarks"
	@echo "make requirements   pin the newest releases of the dependencies"
	@echo "make clean    remove the files that these targets made"

demo: $(VENV)/run
	$(BIN)/roomtone demo

# Linting runs beside the tests, for a minute. Failures of both are reported.
test: $(VENV)/dev packages
	@$(MAKE) --no-print-directory --jobs 2 --keep-going lint suite

# For daily work, without slow tests. A test that needs a missing Debian package names it.
check: $(VENV)/dev
	@$(MAKE) --no-print-directory --jobs 2 --keep-going lint suite TESTS='-m "not slow" --timeout=60 --quiet $(TESTS)'

suite: $(VENV)/dev
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(TESTS)

crash: $(VENV)/dev
	ROOMTONE_KILLS=200 $(BIN)/python -m pytest -s --timeout=1800 tests/test_crashes.py tests/test_disk_full.py

audit: $(VENV)/dev
	@$(BIN)/python .ci/audit.py

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy daemon plugins tests

format: $(VENV)/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

soak: $(VENV)/dev
	SOAK_HOURS=24 $(BIN)/python -m pytest --timeout=3600 tests/test_soak.py

bench: $(VENV)/dev
	for bench in tests/bench/*.py; do $(BIN)/python $$bench || exit 1; done

clean:
	rm -rf $(VENV) dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The releases that the tests ran with, by hash, so that a clone installs the same next year. pip does not accept hashes
# in constraints beside a folder, so the packages come first; the project, which has no hash, is installed separately.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PROJECT := --no-deps --no-build-isolation --editable .

$(VENV)/run: pyproject.toml $(LOCKS)/run.txt | $(VENV)/bin/python
	$(PIP) --require-hashes --requirement $(LOCKS)/run.txt
	$(PIP) $(PROJECT)
	@touch $@

$(VENV)/dev: pyproject.toml $(LOCKS)/dev.txt | $(VENV)/bin/python
	$(PIP) --require-hashes --requirement $(LOCKS)/dev.txt
	$(PIP) $(PROJECT)
	@touch $@ $(VENV)/run

# For Python 3.11 and later on every platform, without the address of a registry. pip cannot resolve for other platforms,
# so uv does.
requirements: | $(VENV)/bin/python
	$(PIP) --upgrade uv
	echo hatchling | $(LOCK) pyproject.toml - --extra local --extra gate --extra metrics --output-file $(LOCKS)/run.txt
	$(LOCK) pyproject.toml --all-extras --output-file $(LOCKS)/dev.txt

.PHONY: packages
packages:
	@missing=; for package in $(TEST_PACKAGES); do \
	    dpkg-query --show --showformat='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else \
	    echo "The tests need system packages that are missing. Install them, then call make again:"; \
	    echo "    sudo apt-get install --no-install-recommends$$missing"; exit 1; \
	fi
