# Each target sets up .venv by itself, from a system Python 3.11, 3.12 or 3.13.
PYTHON ?= python3
# Programs start 1.6 s sooner if Python may keep the bytecode of what they import, which this variable forbids.
unexport PYTHONDONTWRITEBYTECODE
# Two workers share what they compile and prepare, in .cache.
PYTEST = .venv/bin/python -m pytest --numprocesses=2 --dist=worksteal

# Memory in pages of 2 MiB makes a step 8 to 10 % faster on two CPU cores; glibc reads this at the start only.
quickstart: .venv/installed
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 .venv/bin/python -m alexnet_jax.main --config=configs/quickstart.py

# What to run before a commit: style, types, and the tests that neither start a program nor train.
check: lint
	$(PYTEST) -m "not program"

test: .venv/installed
	$(PYTEST)

# `make test`, with PyTorch and an S3 server beside it: no test against them is skipped.
oracle: .venv/oracle-installed
	ORACLE=1 $(PYTEST)

# Runs that are killed, stopped, without room and without files for MINUTES, and end as if nothing had been.
MINUTES ?= 60
soak: .venv/installed
	.venv/bin/python tests/soak.py --minutes=$(MINUTES)

# `make test` with the oldest versions that pyproject.toml allows, and with the newest there are for PYTHON.
# Old versions may warn about newer versions of other packages.
PROTOBUF = ignore:Protobuf gencode version:UserWarning
oldest:
	$(PYTHON) -m venv --clear .venv-oldest
	sed -nE 's/^ .*"([A-Za-z0-9_-]+)>=([0-9.]+)".*/\1==\2/p' pyproject.toml > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --constraint .venv-oldest/constraints.txt --editable '.[test]'
	PYTHONWARNINGS="$(PROTOBUF)" .venv-oldest/bin/python -m pytest --numprocesses=2 --dist=worksteal \
	  -W ignore::DeprecationWarning -W "$(PROTOBUF)"

newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --editable '.[test]'
	.venv-newest/bin/python -m pytest --numprocesses=2 --dist=worksteal

# What TPUs would do. libtpu has an environment of its own: beside it jax looks for a TPU at every start.
scaling: .venv-scaling/installed
	.venv-scaling/bin/python -m experiments.scaling

# What GPUs would do, by the compiler of the CUDA plugin: no GPU, no CUDA.
scaling-gpu: .venv-scaling-gpu/installed
	.venv-scaling-gpu/bin/python -m experiments.scaling --out=experiments/results/scaling/gpu \
	  --only=h100:1,h100:2,h100:8,h100:64,a100:1,a100:2,a100:8,a100:64

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "error: $(PYTHON) is not 3.11, 3.12 or 3.13; give another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	touch $@

.venv/oracle-installed: .venv/installed
	.venv/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[oracle,storage,storage-test]'
	touch $@

.venv-scaling/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-scaling
	.venv-scaling/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[scaling]'
	touch $@

.venv-scaling-gpu/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-scaling-gpu
	.venv-scaling-gpu/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[scaling-gpu]'
	touch $@

.PHONY: quickstart check test oracle oldest newest soak scaling scaling-gpu lint
