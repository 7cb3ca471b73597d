# Everything here works on a fresh machine that has Python >= 3.11, a C compiler and make.
#   PYTHON            the interpreter to build .venv with
#   PIP_FIND_LINKS    folders or pages with wheels (uv does not read pip's settings, so they are passed on)
#   PRISM_TORCH_ARGS  extra arguments for the torch install, e.g. --torch-backend cpu

PYTHON ?= python3
MODEL ?= dense
SEED ?= 1

BIN := .venv/bin
FIND_LINKS := $(foreach link,$(PIP_FIND_LINKS),--find-links $(link))
APT_INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends bubblewrap >/dev/null
UV := VIRTUAL_ENV=.venv $(BIN)/uv pip install -q $(FIND_LINKS)

# Bytecode for what a run may load; the rest is compiled when first imported. Compiling writes it whatever the
# environment says, and nothing that make starts is kept from writing it.
COMPILE := $(BIN)/python -m compileall -qq -j 0 \
  -x '/(tests?|testing|ray|scipy|pandas|modelopt|openai|pip|mypy|transformers/models)/'
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help bubblewrap slurm quickstart quickstart-short test lint format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

.venv/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q uv
	$(UV) $(PRISM_TORCH_ARGS) torch==2.13.0
	$(UV) -c constraints.txt -e '.[dev]'
	@$(COMPILE) .venv/lib/python*/site-packages megatron_prism || :
	@touch $@

bubblewrap:  ## what isolates programs that a model wrote: installed if missing, as root on Debian
	@command -v bwrap >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && { $(APT_INSTALL) || { apt-get update -qq && $(APT_INSTALL); }; }; } \
	  || echo "bwrap is missing: install the package bubblewrap, or grade programs with sandbox=weak" >&2

SLURM_PACKAGES := slurm-wlm slurmctld slurmd slurm-client munge slurmdbd mariadb-server
slurm:  ## a real Slurm for the tests: installed if missing, as root on Debian; the tests start and stop it
	@{ command -v slurmctld && command -v mariadbd; } >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && { apt-get update -qq; DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends \
	  $(SLURM_PACKAGES) >/dev/null 2>&1; }; } || echo "Slurm is missing: the tests in tests/slurm are skipped" >&2

quickstart: .venv/.stamp bubblewrap  ## the whole pipeline at a small size: MODEL=dense|hybrid SEED=1
	@$(BIN)/prism run shoebox model=$(MODEL) seed=$(SEED)

quickstart-short: .venv/.stamp bubblewrap  ## the same stages with a handful of training steps each
	@$(BIN)/prism run shoebox preset=short --run-dir runs/short

test: .venv/.stamp bubblewrap  ## the test suite, on two processes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/.stamp  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: .venv/.stamp  ## format the code and sort its imports
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove the environment and caches; runs/ stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
