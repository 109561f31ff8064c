# The commands of the kit. Start with `make reproduce`, then `make test`; `make help` lists the rest.
SHELL   := /bin/bash
PYTHON  ?= python3
NB      ?= 00_quickstart

# Inside an active conda environment (base apart) that environment is used, otherwise a .venv of this checkout.
CONDA := $(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX))
BIN   := $(if $(CONDA),$(CONDA)/bin,.venv/bin)
READY := $(if $(CONDA),conda-ready,.venv/.ready)

# Class is trained, because that is what it shows; the other profiles take what is recorded (FROM=scratch trains them too).
ASKED = $(or $(PROFILE),$(if $(filter 00_quickstart,$(NB)),class,lite))
BATCH_NB = $(if $(findstring command line,$(origin NB))$(findstring environment,$(origin NB)),$(NB))

.PHONY: help reproduce batch test drills lab lint notebooks bench gpu clean constraints conda-ready
help:
	@echo 'make reproduce [NB=00_quickstart] [PROFILE=class]   set up, train one notebook, print its table (PROFILE=lite: from records)'
	@echo 'make test        set up, run the tests and check the first notebook, cell by cell'
	@echo 'make drills      the long tests: all other notebooks, killed processes, whole batches, full disks, several processes'
	@echo 'make batch [PROFILE=lite] [NB="01_... 06_..."]      train and run all notebooks of a profile, or those named'
	@echo 'make lab         JupyterLab'
	@echo 'make lint        ruff over .py and .ipynb'
	@echo 'make notebooks   execute all notebooks from their records, keep the outputs in notebooks/'
	@echo 'make bench       this kit against the usual way, a table (an hour; run nothing else meanwhile)'
	@echo 'make gpu [HOURS=0.5] [PROFILE=paper]                tests and benchmark on a GPU, then a batch for so many hours'
	@echo 'make clean       remove caches and .venv; results stay'

reproduce: $(READY)
	@$(BIN)/ccd run $(NB) --profile $(ASKED) --from $(or $(FROM),$(if $(filter class,$(ASKED)),scratch,any))

batch: $(READY)
	@$(BIN)/ccd batch $(BATCH_NB) --profile $(or $(PROFILE),lite)

# One thread and one training each: the two workers share the cores. tests/conftest.py says what goes to which worker.
PYTEST = OMP_NUM_THREADS=1 CCD_JOBS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --nbval-lax --nbval-current-env

test: $(READY)
	$(PYTEST) -m 'not drill' notebooks tests

drills: $(READY)
	$(PYTEST) -m drill notebooks tests

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=.

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: $(READY)
	$(BIN)/ccd refresh notebooks/*.ipynb

gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py --hours $(or $(HOURS),0.5) --profile $(or $(PROFILE),paper)

bench: $(READY)
	$(BIN)/python -W ignore benchmarks/bench.py

clean:
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

# PIP_FLAGS: extra flags for pip, such as an index that has CPU builds of torch.
.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Python 3.11 or newer is needed; name one with make PYTHON=/path/to/python3.11, or use conda (environment.yml).'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'python3-venv is missing: install it (Debian, Ubuntu: apt install python3-venv), or use conda (environment.yml).'; exit 1; }
	@echo 'Setting up .venv; this takes a few minutes, once.'
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt --editable '.[batch]'
	@touch $@

conda-ready:
	@$(BIN)/python -I -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("ccdlib", "torch", "papermill", "nbval", "snakemake"))))' || { \
	  echo 'The active conda environment lacks what the kit needs; run: conda env update --file environment.yml'; exit 1; }

# After a change of pins: resolve them anew, and keep the versions, without local build tags and what only CUDA builds need.
constraints:
	rm -rf .venv
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --editable '.[batch]'
	.venv/bin/python -m pip list --format=freeze --exclude-editable | grep -v -E '^(pip|setuptools|nvidia-|cuda-|triton)' | sed 's/+.*//' > .venv/constraints.txt
	mv .venv/constraints.txt constraints.txt
	touch .venv/.ready
