# Everything works from a fresh checkout: the first target that needs it makes .venv.
PYTHON ?= python3
BIN := .venv/bin
LAUNCH := OMP_NUM_THREADS=1 $(BIN)/accelerate launch --config_file recipes/accelerate/cpu_2.yaml

.PHONY: demo test lint types check benchmarks clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: .venv/.installed
	$(LAUNCH) recipes/wmt16_t5.py --demo --resume

test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-dev
	$(BIN)/basedpyright

check: lint types test

benchmarks: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[benchmarks]"
	for script in masked_step selection fanout averaging packing; do $(BIN)/python benchmarks/$$script.py; done

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
