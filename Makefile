# `make demo` and `make test` are all a newcomer needs; the rest are their parts.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := demo
# Architectures for nvcc, where it is found. Empty: the project's own list.
CMAKE_ARGS ?=

.PHONY: demo test lint types unit sanitize bench train-demo clean help

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

demo: $(STAMP) ## Export the demo checkpoint, verify it, segment a scene: demo/overlay.png
	@$(BIN)/cris-export --ckpt train/demo/scenes.pth -o $(DEMO)/scenes.bundle \
	    --samples train/demo/samples.jsonl
	@$(BIN)/python train/demo/demo.py $(DEMO)/scenes.bundle train/demo $(DEMO)

test: lint types unit ## Lint, type-check and run all tests

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

unit: $(STAMP) ## pytest
	$(BIN)/python -m pytest

bench: $(STAMP) ## The engine against PyTorch on this machine
	$(BIN)/cris-bench

clean: ## Remove what the targets made (not .venv)
	rm -rf build dist $(DEMO) .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml CMakeLists.txt $(wildcard kernels/*.h kernels/*/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[cpu,export,train,dev]'
	touch $@
