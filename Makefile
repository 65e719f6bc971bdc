# `make train` and `make test` do all of their own set-up; ARGS is passed on: make train ARGS="rollout.actors=4"
PYTHON_IN_VENV := .venv/bin/python
ARGS ?=
FUZZ_SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev train test lint fuzz bench bench-envs bench-scale chaos soak monitor clean

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

# An environment of its own: the fuzzer is no dependency of anything else. Its inputs grow from those of the repository;
# one that breaks something is left in .fuzz/found and ends it with a non-zero status.
fuzz: .fuzz/installed ## look for bytes that the codec trips over, FUZZ_SECONDS=60 long
	@mkdir -p .fuzz/corpus .fuzz/found
	@.fuzz/venv/bin/python -m tests.fuzz .fuzz/corpus tests/fuzz/corpus -max_total_time=$(FUZZ_SECONDS) -max_len=4096 \
		-timeout=10 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0 -artifact_prefix=.fuzz/found/ $(ARGS)

.fuzz/installed: requirements/fuzz.txt | setup
	@$(PYTHON_IN_VENV) -m venv --clear .fuzz/venv
	@.fuzz/venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@

bench: setup-dev ## measure the stack against plain ways of doing the same; ARGS="--only broadcast --rounds 3" selects
	@$(PYTHON_IN_VENV) -m tests.bench $(ARGS)

bench-envs: setup-dev ## measure the speed of the environments
	@$(PYTHON_IN_VENV) -m tests.bench_envs $(ARGS)

bench-scale: setup-dev ## cost of a ticket with 1 to 1,024 simulated actors; ARGS="--tickets 10000 --actors 16,1024"
	@$(PYTHON_IN_VENV) -m tests.bench.scale $(ARGS)

chaos: setup-dev ## random faults in small runs, one after another; ARGS="--schedules 100 --seed 0"
	@$(PYTHON_IN_VENV) -m tests.chaos $(ARGS)

soak: setup-dev ## two hours of a small run: does anything grow? ARGS="--hours 0.5"
	@$(PYTHON_IN_VENV) -m tests.soak $(ARGS)

monitor: setup ## Prometheus and Grafana for the runs on this machine, where they are installed; Ctrl-C ends them
	@$(PYTHON_IN_VENV) -m orchestration.monitor $(ARGS)

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv .fuzz .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find actors configs envs learner orchestration requirements tests -name __pycache__ -type d -prune -exec rm -rf {} +
