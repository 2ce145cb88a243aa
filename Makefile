# `make run` and `make test` do all their set-up themselves, in .venv.

WORKDIR = runs/embedded
PRESET = cpu
# A smaller contest and less training than the preset's: ten to twenty minutes on two cores.
SHORT = --embedded_images=3000 --config.classify.steps=400 --config.fit.steps='(400,900)' --config.adapt.steps=200
# Each file of tests by one of two processes, in the order of their names.
SPREAD = -n 2 --dist loadfile --no-loadscope-reorder
# XLA's CPU compiler takes half the time over the small programs of tests without its fusion emitters. Tests marked
# `optimised` are about what it makes of a program, and have it as users have.
QUICK = XLA_FLAGS="$$XLA_FLAGS --xla_cpu_use_fusion_emitters=false"
ARGS =

# The interpreter that .venv is made with; without PYTHON=..., the first of these that is new enough.
PYTHON =
PYTHONS = $(PYTHON) python3 python3.13 python3.12 python3.11
FITS = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

BIN = .venv/bin
STAMP = .venv/installed

.PHONY: help setup run test lint clean

help:
	@echo "make run    read the captchas of the embedded contest; results in $(WORKDIR)"
	@echo "            (WORKDIR=DIR, PRESET=NAME, SHORT= for the full preset, ARGS='--seed=1 ...')"
	@echo "make test   lint, types and all tests"
	@echo "make lint   lint and types alone"
	@echo "make setup  .venv with the pinned packages; nothing if it is up to date"
	@echo "make clean  remove .venv and caches; runs/ stays"

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@if ! $(BIN)/python -c "import pip; $(FITS)" 2>/dev/null; then \
	  found=; for python in $(PYTHONS); do \
	    if $$python -c "$(FITS)" 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No Python >= 3.11 with venv among: $(PYTHONS). Install one (on Debian: python3 python3-venv)," >&2; \
	    echo "or name it: make setup PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making .venv with $$($$found --version)"; \
	  $$found -m venv --clear .venv; \
	fi
	@echo "Installing the pinned packages into .venv: once, a few minutes, about 1 GB"
	@$(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[test,dev]'
	@touch $@

run: setup
	$(BIN)/python -m experiments.run --target=embedded --workdir=$(WORKDIR) --preset=$(PRESET) $(SHORT) $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	@most=0; rest=0; \
	$(QUICK) $(BIN)/python -m pytest $(SPREAD) -m 'not optimised' $(ARGS) || most=$$?; \
	$(BIN)/python -m pytest $(SPREAD) -m optimised $(ARGS) || rest=$$?; \
	case $$most$$rest in 00) ;; 05 | 50) echo "ARGS name tests of one kind alone";; *) exit 1;; esac

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find simgan_jax experiments tests -name __pycache__ -prune -exec rm -rf {} +
