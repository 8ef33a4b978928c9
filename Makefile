# Everything on a machine that has only Python 3.11+ and make: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
CLIENTS := .venv-clients
INSTALLED := $(VENV)/installed
RUN := $(VENV)/bin/python
export PYTHONDONTWRITEBYTECODE := 1
# as scripts/common/threads.py
export OMP_WAIT_POLICY ?= PASSIVE
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824

.PHONY: help setup demo test test-hostile test-clients lint format bench bundles release clean

help:
	@echo "make demo     train, evaluate and segment on phantoms; INPUT=image LABEL=label for your own pair"
	@echo "               BUNDLE=universeg shows segmentation by example"
	@echo "               BUNDLE=ultrabones shows bone surfaces in ultrasound; INPUT=folder segments your own images"
	@echo "make test     run the tests"
	@echo "make test-hostile  run the long tests of bad inputs, full disks and killed runs"
	@echo "make test-clients  run the tests in MONAI Label, MONAI Deploy and MONAI FL, in environments of their own"
	@echo "make lint     check style, spelling, configs and settings pages; make format fixes them"
	@echo "make bench    run the benchmarks and write benchmarks/results/"
	@echo "make bundles  write dist/<name>_v<version>.zip for each bundle"
	@echo "make release  as bundles, with checksums, model_info.json and the list of packages of each bundle"
	@echo "make setup    make the environment in $(VENV) only"

setup: $(INSTALLED)

$(INSTALLED): requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

demo: $(INSTALLED)
	$(RUN) -m tools.demo$(if $(BUNDLE),_$(BUNDLE)) $(if $(INPUT),--input "$(INPUT)") $(if $(LABEL),--label "$(LABEL)")

test: $(INSTALLED)
	$(RUN) -m pytest

test-hostile: $(INSTALLED)
	$(RUN) -m pytest -m hostile tests/hostile

test-clients: $(INSTALLED) $(CLIENTS)/label/installed $(CLIENTS)/deploy/installed
	$(RUN) -m pytest -m clients tests/clients

$(CLIENTS)/%/installed: requirements-clients-%.txt requirements-clients-%-nodeps.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $(word 2,$^)
	@touch $@

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m codespell_lib
	$(RUN) -m tools.format_configs --check
	$(RUN) -m tools.settings_pages --check
	$(RUN) -m tools.table_pages --check

format: $(INSTALLED)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(RUN) -m tools.format_configs
	$(RUN) -m tools.settings_pages
	$(RUN) -m tools.table_pages

bench: $(INSTALLED)
	@for bench in benchmarks/*.py; do echo "== $$bench"; $(RUN) -m benchmarks.$$(basename $$bench .py) || exit 1; done

bundles: $(INSTALLED)
	$(RUN) -m tools.pack

release: $(INSTALLED)
	$(RUN) -m tools.release

clean:
	rm -rf demo dist .pytest_cache .ruff_cache
