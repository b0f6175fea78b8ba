# Every target does its own set-up. PYTHON must be 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.ready
OURS := datapipe provence flows tests benchmarks scripts

export HF_HUB_OFFLINE := 1
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# The first start makes a database; on a busy machine that takes longer than the default 20 seconds.
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS := 120
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test test-slow lint bench notebooks clean

setup: $(STAMP)

# pip installs torch first, from wherever pip is told to look: uv then leaves it in place. uv installs the rest because it
# is some ten times faster; where it cannot reach the index that pip uses, pip does it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[all,dev]' || $(PIP) -e '.[all,dev]'
	touch $(STAMP)

demo: $(STAMP)
	mkdir -p runs/.prefect
	PREFECT_HOME=$(CURDIR)/runs/.prefect PREFECT_LOGGING_LEVEL=WARNING $(BIN)/python -m flows.curate data/banking77.parquet \
	  --out runs/demo --keep 0.3 --text-column text --label-column label_name

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports

# Two processes of two threads each would wait for one another.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not slow and not gpu' tests

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m 'slow and not gpu' tests

bench: $(STAMP)
	$(BIN)/python -m benchmarks.import_time
	$(BIN)/python -m benchmarks.embedding
	$(BIN)/python -m benchmarks.prototypes assign
	$(BIN)/python -m benchmarks.prototype_attempts
	$(BIN)/python -m benchmarks.prototypes stream --rows 500000 2000000 8000000 --folder runs/bench-vectors
	$(BIN)/python -m benchmarks.select_export
	$(BIN)/python -m benchmarks.ingest_memory
	$(BIN)/python -m benchmarks.readme

clean:
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
