# Each target sets up .venv by itself, from a system Python 3.11, 3.12 or 3.13.
PYTHON ?= python3

quickstart: .venv/installed
	.venv/bin/python -m alexnet_jax.main --config=configs/quickstart.py

test: .venv/installed
	.venv/bin/python -m pytest

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "error: $(PYTHON) is not 3.11, 3.12 or 3.13; give another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

.PHONY: quickstart test lint
