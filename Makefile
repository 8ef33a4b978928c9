# Everything on a machine that has only Python 3.11+ and make: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/installed
RUN := $(VENV)/bin/python
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help setup demo test lint format bench bundles clean

help:
	@echo "make demo     train, evaluate and segment on phantoms; INPUT=image LABEL=label for your own pair"
	@echo "make test     run the tests"
	@echo "make lint     check style, spelling and config formatting; make format fixes them"
	@echo "make bench    run the benchmarks and write benchmarks/results/"
	@echo "make bundles  write dist/<name>_v<version>.zip for each bundle"
	@echo "make setup    make the environment in $(VENV) only"

setup: $(INSTALLED)

$(INSTALLED): requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

demo: $(INSTALLED)
	$(RUN) -m tools.demo $(if $(INPUT),--input "$(INPUT)") $(if $(LABEL),--label "$(LABEL)")

test: $(INSTALLED)
	$(RUN) -m pytest

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m codespell_lib
	$(RUN) -m tools.format_configs --check

format: $(INSTALLED)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(RUN) -m tools.format_configs

bench: $(INSTALLED)
	@for bench in benchmarks/*.py; do echo "== $$bench"; $(RUN) -m benchmarks.$$(basename $$bench .py) || exit 1; done

bundles: $(INSTALLED)
	$(RUN) -m tools.pack

clean:
	rm -rf demo dist .pytest_cache .ruff_cache
