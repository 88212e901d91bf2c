# `make repro` and `make test` are all that a newcomer needs; both create .venv and install first.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install repro test test-all lint docs ui

# --no-compile: else pip compiles all 23,000 modules, most of which are never imported, for one to two and a half minutes.
install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; run make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	touch $@

repro: install
	@git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true # an archive without .git: DVC asks to be told
	dvc repro
	@sfd show

# One worker per core. A test file stays in one worker, and torch in one thread, because workers that share cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 pytest -n auto --dist loadfile --no-loadscope-reorder

# All unit tests and one run of the whole graph.
test: install
	$(PYTEST) -m "not long"

test-all: install
	$(PYTEST)

lint: install docs
	ruff check .
	ruff format --check .
	mypy
	lint-imports

docs: install
	mkdocs build --strict --quiet

ui: install
	mlflow ui --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlruns/mlflow.db} --host 127.0.0.1
