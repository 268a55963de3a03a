# `make demo` and `make test` set everything up by themselves; see README.md. `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.PHONY: help demo test test-long test-packages packages check format lock setup install uninstall screenshots clean

BIN := .venv/bin
# So many tests run at once; most of their time they wait for processes and sockets.
WORKERS := 2
# The tests need no screen and reach no network.
TEST := QT_QPA_PLATFORM=offscreen FLWR_TELEMETRY_ENABLED=0 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(if $(WORKERS),-n $(WORKERS) --dist loadfile)

help: ## Show what can be made
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: setup ## Run a whole federation on this computer and watch it learn
	@if [ "$$(uname)" = Linux ] && [ -z "$$DISPLAY$$WAYLAND_DISPLAY" ]; then \
	  echo "There is no screen here (DISPLAY and WAYLAND_DISPLAY are not set), so the demo runs without the window." >&2; \
	  exec $(BIN)/zk0desk demo --headless $(ARGS); \
	else \
	  exec $(BIN)/zk0desk demo $(ARGS); \
	fi

test: check ## Check the code and run the tests, two at once; WORKERS= runs one by one
	@$(TEST) $(ARGS)

test-long: setup ## Run the tests that take long
	@$(TEST) -m long --timeout=3600 $(ARGS)

test-packages: setup ## Build the Linux packages and try them in a fresh Debian (root, takes twenty minutes)
	@$(BIN)/python -m pytest -m packages --timeout=3600 tests/packages $(ARGS)

packages: setup ## Build the Linux packages into dist/; ARGS="--python ARCHIVE" for what is to be released
	@$(BIN)/python packaging/build.py --system linux --format deb,tar,appimage --out dist $(or $(ARGS),--python running)

check: setup ## Lint, check types and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: setup ## Format the code
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format .

lock: setup ## Resolve the dependencies again and write requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra engine --extra wandb --group dev --universal --python-version 3.12 \
	  --generate-hashes --no-emit-index-url --custom-compile-command "make lock" --quiet --output-file requirements.lock

setup: ## Prepare the environment in .venv
	@packaging/bootstrap.sh

install: setup ## Put zk0desk into the desktop's menu, for this user
	@packaging/desktop.sh install

uninstall: ## Take zk0desk out of the desktop's menu
	@packaging/desktop.sh uninstall

screenshots: setup ## Make the pictures in docs/pictures
	@QT_QPA_PLATFORM=offscreen $(BIN)/python packaging/screenshots.py $(ARGS)

clean: ## Remove what was built, the environment included
	rm -rf .venv .bootstrap dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
