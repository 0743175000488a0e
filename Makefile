# `make` alone lists what there is to do.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Everything the product, its demo and its tests need, about this much to download.
DOWNLOAD := about 3.5 GB the first time (torch with CUDA; docs/install.md has a CPU-only way, about 700 MB)
CATALOG ?=
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test up lint format bench lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Build .venv with the `wwts` and `airflow` commands in it

$(STAMP): requirements.txt pyproject.toml
	@echo "Installing into $(VENV): $(DOWNLOAD)."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: $(STAMP) ## Tag real photographs, no server needed (CATALOG=folder or manifest of yours)
	@$(BIN)/wwts demo --catalog "$(CATALOG)"

test: $(STAMP) ## Run the whole test suite, some files at a time (TESTS=tests/test_x.py for some of it)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TESTS)

up: $(STAMP) ## Start Airflow and MLflow on this machine; Ctrl-C stops all of it
	@$(BIN)/wwts up

lint: $(STAMP) ## Check style, types and DAG imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(STAMP) ## Measure speed and memory, as ratios (PHOTOS=folder of photographs)
	$(BIN)/python -m eval.bench $(if $(PHOTOS),--photos "$(PHOTOS)")

lock: ## Write requirements.txt anew from pyproject.toml
	$(BIN)/python -m piptools compile --quiet --strip-extras --no-emit-index-url --no-emit-find-links \
	  --extra worker --extra demo --extra dev --output-file requirements.txt pyproject.toml

clean: ## Remove .venv and what the demo made
	rm -rf $(VENV) .wwts/demo
