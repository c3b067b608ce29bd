# Each target sets up all that it needs by itself, in a virtual environment of the project (.venv).
#
#   make demo       train a small model of handwritten digits, from data to report; nothing is downloaded but packages
#   make test       the tests, in as many processes as there are cores; in one: make test JOBS=0
#   make test-slow  the full sizes of those that run small by default
#   make lint       ruff and mypy
#   make bench      speed beside diffusers, on this machine
#   make results    the tables of docs/results.md, for hours; one row, one thread: make results ROW=digits THREADS=1
#   make clean      remove what these made, but no runs
#
# Another Python: make demo PYTHON=python3.12. Overrides of the demo's recipe: make demo SET="seed=1".

PYTHON ?= python3
RUN ?= runs/digits
SET ?=
ROW ?= all
JOBS ?= auto
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# A file stays in one process, since its tests share what is dear to make.
TESTS = $(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist loadfile
OLD := import sys; sys.version_info >= (3, 11) or sys.exit("moyai needs Python 3.11 or newer, and $(PYTHON) is " \
	+ sys.version.split()[0] + "; give another one: make PYTHON=python3.12")

.PHONY: demo test test-slow lint bench results clean
.DELETE_ON_ERROR:

# What running needs; the tests' tools come on top, so that neither target repeats the other's installation.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c '$(OLD)'
	@echo "setting up .venv (once; torch is large)"
	@$(PYTHON) -m venv .venv
	@$(PIP) --editable '.[digits]'
	@touch $@

.venv/ready-to-test: .venv/ready
	@echo "setting up what the tests need"
	@$(PIP) --editable '.[test]'
	@touch $@

# The recipes' and the peers' packages. denoising-diffusion-pytorch declares torchvision, which its training does not need.
.venv/ready-for-results: .venv/ready
	@echo "setting up what the results need"
	@$(PIP) --editable '.[digits,text,peers]' scipy tqdm
	@$(PIP) --no-deps denoising-diffusion-pytorch ema-pytorch accelerate einops pytorch-fid psutil
	@touch $@

demo: .venv/ready
	$(BIN)/moyai train recipes/digits.toml $(SET) --out $(RUN)
	@echo "The report, to open in a browser: $(RUN)/report.html"

test: .venv/ready-to-test
	$(TESTS) -m "not slow"

test-slow: .venv/ready-to-test
	$(TESTS) -m slow

lint: .venv/ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready-to-test
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/sample_step.py

results: .venv/ready-for-results
	$(BIN)/python benchmarks/results.py --row $(ROW) $(if $(THREADS),--threads $(THREADS))

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
