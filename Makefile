# `make train` and `make test` do all of their own set-up; ARGS is passed on: make train ARGS="rollout.actors=4"
PYTHON_IN_VENV := .venv/bin/python
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev train test lint bench bench-envs clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

setup: ## build .venv from the pinned packages (nothing to do when they have not changed)
	@bash requirements/setup.sh

setup-dev:
	@bash requirements/setup.sh dev

train: setup ## train with configs/quickstart.yaml; ARGS="key=value ..." overrides
	@$(PYTHON_IN_VENV) orchestration/run.py --config configs/quickstart.yaml $(ARGS)

lint: setup-dev ## style, format and types
	@$(PYTHON_IN_VENV) -m ruff check
	@$(PYTHON_IN_VENV) -m ruff format --check
	@$(PYTHON_IN_VENV) -m mypy

# lint is a prerequisite and not a line of the recipe: it ends first even under `make -j`, and pytest has the last word.
test: lint ## lint, then every test; ARGS="-k name" selects
	@$(PYTHON_IN_VENV) -m pytest $(ARGS)

bench: setup-dev ## measure the stack against plain ways of doing the same; ARGS="--only broadcast --rounds 3" selects
	@$(PYTHON_IN_VENV) -m tests.bench $(ARGS)

bench-envs: setup-dev ## measure the speed of the environments
	@$(PYTHON_IN_VENV) -m tests.bench_envs $(ARGS)

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find actors configs envs learner orchestration requirements tests -name __pycache__ -type d -prune -exec rm -rf {} +
