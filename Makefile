# Two commands: `make demo` and `make test`. Each does all set-up on first use; a second call installs nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= demo
# the day of the year: another slice of the long part each day, the same one all day
SEED ?= $(shell date +%j)
MINUTES ?= 30
# on two cores: a test often waits
WORKERS ?= 3
FAST := not (long or server or training or slow)
PYTEST := pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --long-seed $(SEED)

.PHONY: setup system-packages demo test test-fast test-long coverage check docs docs-reference lint-docs clean-demo

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the tested versions into $(VENV) (once, a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(STAMP)

# Debian's Postgres and Chromium, which the tests of the server on Postgres and of the audit page need; else they skip.
system-packages:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql-15 chromium

demo: $(STAMP)
	@$(BIN)/plumbline init $(DEMO) --sample-world
	@$(BIN)/plumbline retrain -C $(DEMO)

# All but the long part, and a slice of that, which the seed draws: `make test SEED=7` takes another.
test: $(STAMP)
	@$(BIN)/python -m $(PYTEST) --long slice

# No server, no training, nothing beyond about a second.
test-fast: $(STAMP)
	@$(BIN)/python -m $(PYTEST) --long slice -m "$(FAST)"

# Branches covered, subprocesses among them: of the fast part, or with `PART=` of all that `make test` runs.
PART ?= $(FAST)
coverage: export REPOSITORY := $(CURDIR)
coverage: $(STAMP)
	@rm -rf .coverage && mkdir .coverage
	@$(BIN)/coverage run -m $(PYTEST) --long slice -m "$(PART)"
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --sort=cover

# Campaigns, whole retrainings, simulations: in an order of the seed, until the time is spent.
test-long: $(STAMP)
	@$(BIN)/python -m $(PYTEST) --minutes $(MINUTES) --hypothesis-seed=$(SEED)

check: $(STAMP) lint-docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy -p docs.tools
	@$(BIN)/python -m docs.tools.words
	@$(BIN)/lint-imports
	@$(BIN)/deptry flows tasks data_contracts

# The site, in site/index.html. Strict (and not --quiet, which hides warnings from it): a link in README, CONTRIBUTING or docs/ that leads nowhere is an error.
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html; $(BIN)/mkdocs serve has the search too"

lint-docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(VENV)/site

# The pages of docs/reference/ that follow from the code; a test says when they are stale.
docs-reference: $(STAMP)
	@$(BIN)/python -m docs.tools.reference

clean-demo:
	rm -rf $(DEMO)
