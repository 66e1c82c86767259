# Everything works from a fresh checkout: the first target that needs it makes .venv.
PYTHON ?= python3
BIN := .venv/bin
LAUNCH := OMP_NUM_THREADS=1 $(BIN)/accelerate launch --config_file recipes/accelerate/cpu_2.yaml

# The oldest versions that pyproject.toml allows. PYTHON_OLDEST=python3.10 for the oldest Python, too.
PYTHON_OLDEST ?= $(PYTHON)
FAST := tests/test_launching.py tests/test_command_line.py tests/sparsity/test_masks.py tests/sparsity/test_selection.py tests/soup tests/compact/test_loading.py \
  tests/compact/test_folders.py tests/training/test_trainer.py tests/training/masked/test_masked_trainer.py \
  tests/hub/test_model_card.py tests/hub/test_cli.py tests/hub/test_push.py tests/hub/test_server.py

.PHONY: demo test test-oldest lint types docs check notebooks benchmarks gpu gpu-bundle clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

.venv/.installed-docs: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

demo: .venv/.installed
	$(LAUNCH) recipes/wmt16_t5.py --demo --resume

test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON_OLDEST) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e ".[test]"
	touch $@

test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -c "import sys, torch, transformers as t; print('oldest: Python', sys.version.split()[0], 'torch', torch.__version__, 'transformers', t.__version__)"
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2 -p no:cacheprovider $(FAST)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-dev
	$(BIN)/basedpyright

docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open build/site/index.html"

check: lint types docs test test-oldest

# Runs the notebooks anew and keeps their outputs.
notebooks: .venv/.installed-dev
	$(BIN)/python tests/notebooks/keep.py

benchmarks: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[benchmarks]"
	for script in masked_step selection fanout averaging packing; do $(BIN)/python benchmarks/$$script.py; done

# On a machine with a GPU, by the Python that has torch there. Each part ends within nine minutes; the same command goes on.
gpu:
	$(PYTHON) -m benchmarks.gpu check
	failed=0; for part in correct cost one_gpu inference translation; do $(PYTHON) -m benchmarks.gpu $$part || failed=1; done; exit $$failed

# What must travel to a machine without a network, in .gpu.
gpu-bundle: .venv/.installed
	$(BIN)/python -m benchmarks.gpu.bundle

clean:
	rm -rf .venv .venv-oldest build *.egg-info .pytest_cache .ruff_cache
