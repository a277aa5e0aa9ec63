# On a machine with only Python 3.11 or newer and make, every target does its own set-up:
# `make test` is enough after a clone. To choose the interpreter: `make test PYTHON=python3.13`.

SHELL := /bin/sh
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two pip processes must not write to one environment, whatever -j says.
.NOTPARALLEL:

# The environment made here decides what is imported, not the caller's.
unexport PYTHONPATH PYTHONHOME
# Hundreds of the tests' programs import the package: it is compiled once, not by each.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# pyright's wrapper would ask the network for a newer version at every start.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

VENV := .venv
# Two processes on two cores; each has servers of its own, so not as many as there may be cores.
# A file stays in one of them: in a page, a block goes on with what the blocks before it have made.
PYTEST := -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# What is run without coverage is long, and needs nothing of others: who is idle takes from who is not.
UNCOVERED := $(PYTEST) --dist worksteal -m uncovered
# Not written out where it is used: its comma would be one of `call`.
EXTRAS := dask,postgresql,process
BENCH_VENV := .venv-bench
BENCH_APSCHEDULER3_VENV := .venv-bench-apscheduler3
PY := $(VENV)/bin/python

# Looked for in this order. One that doesn't start, is too old or can't make an environment is passed over.
PYTHON ?=
CANDIDATES := $(if $(PYTHON),"$(PYTHON)",python3.11 python3 python3.12 python3.13 python3.14 python)

# $(call make-venv,DIRECTORY): an empty environment with a pip that knows dependency groups.
define make-venv
@for candidate in $(CANDIDATES); do \
	if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		echo "making $(1) with $$("$$candidate" -c 'import sys; print(sys.executable, sys.version.split()[0])')"; \
		"$$candidate" -m venv --clear "$(1)" || exit 1; \
		"$(1)/bin/python" -m pip install --quiet --upgrade "pip>=25.1" || exit 1; \
		pwd > "$(1)/.made"; \
		exit 0; \
	fi; \
done; \
echo 'error: no Python 3.11 or newer with the modules venv and ensurepip among:' $(CANDIDATES) >&2; \
echo '       install one (on Debian: python3 and python3-venv), or name it: make PYTHON=/path/to/python3' >&2; \
exit 1
endef

# $(call install,DIRECTORY,ARGUMENTS)
define install
@echo "installing into $(1)"
@"$(1)/bin/python" -m pip install --quiet $(2)
@touch $@
endef

.PHONY: help
help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(VENV)/.demo  ## See tasks outlive a crash.
	@$(PY) examples/durable.py

.PHONY: test
test: $(VENV)/.test  ## Run the tests, with every example and every code block of the documentation.
	$(PY) $(PYTEST)

.PHONY: check
check: $(VENV)/.check  ## Run everything that CI runs: format, lint, types, imports, tests, coverage.
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	@# At the same time: each has one core busy, and says all at its end.
	$(PY) -m mypy & mypy=$$!; $(PY) -m pyright; pyright=$$?; wait $$mypy && exit $$pyright
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" pyright --verifytypes trio_gokugen --ignoreexternal
	$(VENV)/bin/lint-imports --no-cache --no-logo
	$(PY) -m coverage erase
	$(PY) $(UNCOVERED)
	$(PY) -m coverage run $(PYTEST) -m "not uncovered"
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report

.PHONY: format
format: $(VENV)/.check  ## Format the code, and repair what can be repaired.
	$(PY) -m ruff check --fix-only
	$(PY) -m ruff format

.PHONY: bench
bench: $(BENCH_VENV)/.bench $(BENCH_APSCHEDULER3_VENV)/.bench  ## Run the benchmarks.
	APSCHEDULER3_PYTHON="$(CURDIR)/$(BENCH_APSCHEDULER3_VENV)/bin/python" $(BENCH_VENV)/bin/python -m benchmarks

.PHONY: docs
docs: $(VENV)/.docs  ## Build the documentation into docs/_build/html.
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

.PHONY: clean
clean:  ## Remove everything that was made here, the environments too.
	rm -rf $(VENV) $(BENCH_VENV) $(BENCH_APSCHEDULER3_VENV) build dist docs/_build htmlcov
	rm -rf benchmarks/.tmp .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamps: an environment is made once, and a group installed anew when pyproject.toml has changed.

# An environment holds absolute paths: one whose directory was moved, or whose Python has gone, is made anew.
define forget-unless-usable
ifneq ($$(shell "$(1)/bin/python" -c '' 2>/dev/null && cat "$(1)/.made" 2>/dev/null),$$(shell pwd))
.PHONY: $(1)/.made
endif
endef
$(foreach venv,$(VENV) $(BENCH_VENV) $(BENCH_APSCHEDULER3_VENV),$(eval $(call forget-unless-usable,$(venv))))

$(VENV)/.made:
	$(call make-venv,$(VENV))

$(BENCH_VENV)/.made:
	$(call make-venv,$(BENCH_VENV))

$(BENCH_APSCHEDULER3_VENV)/.made:
	$(call make-venv,$(BENCH_APSCHEDULER3_VENV))

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	$(call install,$(VENV),--editable .[sql])

$(VENV)/.test: $(VENV)/.made pyproject.toml
	$(call install,$(VENV),--editable .[$(EXTRAS)] --group test)

$(VENV)/.check: $(VENV)/.made pyproject.toml
	$(call install,$(VENV),--editable .[$(EXTRAS)] --group check)

$(VENV)/.docs: $(VENV)/.made pyproject.toml
	$(call install,$(VENV),--editable .[$(EXTRAS)] --group docs)

$(BENCH_VENV)/.bench: $(BENCH_VENV)/.made pyproject.toml
	$(call install,$(BENCH_VENV),--editable .[$(EXTRAS)] --group bench)

# APScheduler 3 and 4 are one distribution: they can't share an environment.
$(BENCH_APSCHEDULER3_VENV)/.bench: $(BENCH_APSCHEDULER3_VENV)/.made pyproject.toml
	$(call install,$(BENCH_APSCHEDULER3_VENV),--group bench-apscheduler3)
