# The commands of the README and of development.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo demo-train test lint env lock slurm-start slurm-stop clean
.DELETE_ON_ERROR:

env: $(VENV)/installed

$(VENV)/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint requirements.lock --editable ".[test]"
	touch $@

demo: env  ## Four tasks with the shipped models on real data; prints the path of the report.
	snakemake --profile profiles/local
	@echo "report: $(CURDIR)/results/report.html"

demo-train: env  ## The same tasks with training from scratch: the whole pipeline, in 13 to 15 minutes.
	snakemake --profile profiles/local --configfile config/demo-train.yaml
	@echo "report: $(CURDIR)/results/report.html"

# One thread per process, as processes that each use every core slow each other down. Slow tests start first
# (tests/conftest.py). The cluster tests mostly wait, so they run beside the others.
test: env lint  ## Everything: style, types, workflow checks, and all tests.
	@log=$$(mktemp); pytest -m slurm >"$$log" 2>&1 & cluster=$$!; \
	OMP_NUM_THREADS=1 pytest -m "not slurm" -n auto --maxprocesses 4 --no-loadscope-reorder; others=$$?; \
	wait $$cluster; status=$$?; cat "$$log"; rm "$$log"; \
	exit $$((others || status))

lint: env
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check workflow
	snakemake --lint

lock:  ## Record the installed versions, once the tests pass with them.
	$(BIN)/python tests/package/locking.py > requirements.lock

slurm-start:  ## A real two-node cluster on loopback (needs slurm-wlm and munge, and root).
	tests/cluster/cluster.sh start

slurm-stop:
	tests/cluster/cluster.sh stop

clean:
	rm -rf results experiments logs .snakemake
