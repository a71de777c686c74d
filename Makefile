# Every target makes .venv by itself (once) and works from any directory, also one with spaces in its name:
#   make demo     a tokenizer and two models from raw text, in two to four minutes   -> runs/demo/
#   make test     the tests, at most six minutes on two cores
#   make slow     the slow tests          make lint    style and import floors
#   make bench    the speed claims        make notebooks  builds the chapters that are stale
#   make clean    removes .venv*, caches and builds; runs/ stays
# A GPU machine: make TORCH_INDEX= demo   (PyPI's torch, with CUDA). Another Python: make PYTHON=python3.12 demo

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow lint bench oracle notebooks clean
SHELL := /bin/sh
PYTHON ?= python3

# The folder of this file; `strip` keeps inner spaces together because only one file was read so far.
HERE := $(shell cd "$$(dirname "$(strip $(MAKEFILE_LIST))")" && pwd)
ENTER = cd "$(HERE)" &&
RUN = $(ENTER) .venv/bin/python

# PyPI's torch for Linux brings gigabytes of CUDA libraries. Without an NVIDIA driver, and if PyTorch's CPU index answers
# at once, take its build. Set TORCH_INDEX yourself (a URL, or empty for PyPI) to decide otherwise.
TORCH_INDEX ?= ask

help:
	@$(ENTER) sed -n '2,7s/^#   //p' Makefile

setup:
	@$(ENTER) $(PYTHON) .ci/setup.py .venv dev --torch-index "$(TORCH_INDEX)"

demo: setup
	@$(RUN) -m minillm demo

test: setup
	@$(RUN) tests/helpers/side_by_side.py -m "not slow"

slow: setup
	@$(RUN) tests/helpers/side_by_side.py -m slow

lint:
	@$(ENTER) $(PYTHON) .ci/setup.py .venv dev,lint --torch-index "$(TORCH_INDEX)"
	@$(ENTER) .venv/bin/ruff check minillm tests benchmarks .ci
	@$(ENTER) .venv/bin/lint-imports

notebooks: setup
	@$(RUN) -m minillm.course.freshness

# Peers and oracles from PyPI have pins of their own: they live in a second environment.
oracle:
	@$(ENTER) $(PYTHON) .ci/setup.py .venv-oracle-hf dev,oracle-hf,oracle-peft,oracle-quant --torch-index "$(TORCH_INDEX)"
	@$(ENTER) .venv-oracle-hf/bin/python -m pytest -q -m oracle --skips-are-errors

bench:
	@$(ENTER) $(PYTHON) .ci/setup.py .venv-oracle-hf dev,oracle-hf,oracle-peft,oracle-quant --torch-index "$(TORCH_INDEX)"
	@$(ENTER) .venv-oracle-hf/bin/python benchmarks/all.py

clean:
	@$(ENTER) rm -rf .venv .venv-oracle-hf build minillm.egg-info .pytest_cache .ruff_cache .import_linter_cache
	@$(ENTER) find minillm tests benchmarks .ci -name __pycache__ -type d -prune -exec rm -rf {} +
