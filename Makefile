# One environment for everything: built once, reused in seconds.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint types contracts docs bench fashion levels results results-long env clean

env: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## train on real images in about two minutes, and show the curve
	$(BIN)/python examples/demo.py

test: $(READY)  ## on two cores, one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not benchmark' -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)  ## cost of a training step, of its memory, and of a compressed forward
	$(BIN)/python -m pytest -m benchmark tests/benchmarks -s

fashion: $(READY)  ## the Fashion-MNIST table: an hour on two cores
	$(BIN)/python examples/fashion_mnist.py

levels: fashion  ## batch-norm statistics between the stored levels
	$(BIN)/python examples/stored_levels.py

results: $(READY)  ## the table of modes, subspaces and norms after 4 epochs: hours; goes on where it was stopped
	$(BIN)/python examples/results.py

results-long: $(READY)  ## the same after 20 epochs
	$(BIN)/python examples/results.py --epochs 20

clean:
	rm -rf .venv runs site
