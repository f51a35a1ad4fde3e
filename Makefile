# Every command of the project. `make` alone prints this file as help: a line with `##@` opens a section there,
# the text behind `##` describes a target.

.DEFAULT_GOAL := help
python := .venv/bin/python

# Bytecode is written at the first import (.ci/setup says why), so nothing may forbid it.
unexport PYTHONDONTWRITEBYTECODE

##@ Use it

.PHONY: demo
demo: .venv/.installed ## Install, train an SAE on the model that ships here, index it, serve http://127.0.0.1:8000
	@.venv/bin/saescope demo

.PHONY: serve
serve: .venv/.installed ## Serve the SAEs you have, on http://127.0.0.1:8000
	@.venv/bin/saescope serve

.PHONY: install
install: .venv/.installed ## Only install, into .venv: then .venv/bin/saescope --help
	@echo "saescope: installed: .venv/bin/saescope --help"

##@ Work on it

# One more than there are cores: many tests wait for a browser, a database or another process.
workers = $(shell $(python) -c 'import os; print((os.cpu_count() or 1) + 1)')

.PHONY: test
test: .venv/.installed-dev browser ## Run all tests, on SQLite, PostgreSQL and Chromium; installs what is missing
	@$(python) -m pytest -n $(workers) --dist loadfile

.PHONY: test-fast
test-fast: .venv/.installed-dev ## Run the tests that need no browser, no PostgreSQL and no patience
	@$(python) -m pytest -n 2 --dist loadfile -m "not slow and not browser and not peers" -k "not postgresql"

.PHONY: test-peers
test-peers: .venv/.installed-dev ## Compare imports and exports with SAELens, sparsify and dictionary_learning; installs them
	@$(python) -m pytest -m peers tests/peers

.PHONY: lint
lint: .venv/.installed-dev ## Check style, format and types
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy

.PHONY: format
format: .venv/.installed-dev ## Format the code and repair what the linter can
	@$(python) -m ruff check --fix
	@$(python) -m ruff format

.PHONY: screenshots
screenshots: .venv/.installed-dev browser ## Photograph every page, light and dark, desktop and phone
	@$(python) -m tests.browser.screenshots

.PHONY: bench-train
bench-train: .venv/.installed ## Time training against its floor and its peers (40 minutes; quick: make bench-train ARGS='--quick --no-peers')
	@$(python) -m benchmarks.train $(ARGS)

.PHONY: bench-pipeline
bench-pipeline: .venv/.installed ## Time training from text against its parts, and six SAEs together against one by one
	@$(python) -m benchmarks.pipeline $(ARGS)

.PHONY: bench-index
bench-index: .venv/.installed ## Time the index against its floor and SAEDashboard, and databases of up to a million features
	@$(python) -m benchmarks.index $(ARGS)

.PHONY: bench-probe
bench-probe: .venv/.installed ## Time probes against the bare model, while one types, and with 32 readers at once
	@$(python) -m benchmarks.probe $(ARGS)

.PHONY: bench-load
bench-load: .venv/.installed-dev ## Fifty people read, probe and write for a minute; then beside 1,000 streams
	@$(python) -m benchmarks.load $(ARGS)

.PHONY: bench-web
bench-web: .venv/.installed-dev ## Time the dashboard's pages under eight clients, with 4,096 and with a million features
	@$(python) -m benchmarks.web $(ARGS)

.PHONY: bench-soak
bench-soak: .venv/.installed-dev ## The same for half an hour: no error, and memory flat
	@$(python) -m benchmarks.load --seconds 1800 $(ARGS)

.PHONY: lock
lock: .venv/.installed-dev ## Pin what is installed in requirements.lock, and list its licences in docs/licences.md
	@$(python) .ci/lock.py

.PHONY: audit
audit: .venv/.installed-dev ## Look for known weaknesses in the pinned packages (needs the network)
	@$(python) .ci/audit.py

.PHONY: clean
clean: ## Remove .venv and what tools left behind; your runs and databases stay
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	@find . -path ./.cache -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

##@ Set-up

.PHONY: help
help: ## Print this
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@printf '\nAnother Python than the first of 3.13, 3.12, 3.11 that is found: make demo PYTHON=/path/to/python3\n'

# The stamps hold the folder that was installed. In another one (moved, copied), or where .venv's Python is gone, the
# environment's scripts point elsewhere, so it is installed again, as after a change of pyproject.toml.
installed_in := $(shell [ -x $(python) ] && cat .venv/.installed 2>/dev/null)
ifneq ($(installed_in),$(CURDIR))
.PHONY: .venv/.installed .venv/.installed-dev
endif

.venv/.installed: pyproject.toml .ci/setup
	@sh .ci/setup app

.venv/.installed-dev: pyproject.toml .ci/setup
	@sh .ci/setup dev

.PHONY: browser
browser: .venv/.installed-dev
	@sh .ci/setup browser
