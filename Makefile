PYTHON  ?= python3
OUT     ?= out

VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := compiler passes plugins runtime tests examples benchmarks
LINUX   := sys_platform == 'linux' and platform_machine == 'x86_64'
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

MODEL   := examples/models/shapes-unet.safetensors
PROMPT  := a red circle left of a blue square

.PHONY: demo test test-slow test-zoo zoo-page fuzz kill-test check format bench bench-build bench-cache bench-unet caching engines quantization techniques stages whole-models bench-whole clean

# Compile the small trained model, sample one image with the bundle, and print where it is.
demo: $(VENV)/compiler.stamp
	rm -rf $(OUT)/demo
	mkdir -p $(OUT)/demo
	$(BIN)/diffc build $(MODEL) --target ort-fp32 -o $(OUT)/demo/shapes.diffc
	$(BIN)/diffc run $(OUT)/demo/shapes.diffc "$(PROMPT)" --guidance 5 --seed 0 -o $(OUT)/demo/image.png
	@echo "The image is $(OUT)/demo/image.png"

# Two processes of one thread each: most of a test is Python. Each takes half of the files, then from the other: what the
# tests of a file share is made once.
test: $(VENV)/dev.stamp
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal -m "not slow and not zoo"

# The tests that are left out above: whole builds of many pipelines.
test-slow: $(VENV)/dev.stamp
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal -m slow

# Every pipeline of the zoo, built as a user does, at three prompts and two seeds; an hour or more.
test-zoo: $(VENV)/dev.stamp
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal tests/test_zoo.py

# The same, and writes docs/pipelines.md.
zoo-page: $(VENV)/dev.stamp
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m tests.zoo.page

# Mutated checkpoints, bundles and requests: each is refused by name, or means what it meant. SEED=1 for other mutations.
SEED    ?= 0
FUZZ    := $(OFFLINE) OMP_NUM_THREADS=1 PYTHONPATH=.:examples/models $(BIN)/python -m
fuzz: $(VENV)/dev.stamp
	$(FUZZ) tests.fuzz.run --seed $(SEED) --inputs 10000 --seconds 1800

# 200 builds, killed at random moments: the next one clears what they left.
kill-test: $(VENV)/dev.stamp
	$(FUZZ) tests.fuzz.kill --seed $(SEED) --kills 200 --seconds 1200

# Slow: builds both example models, then times them against diffusers in turns.
bench: $(VENV)/compiler.stamp
	$(OFFLINE) $(BIN)/python benchmarks/first_image.py

# Slow: builds both example models in every precision, and writes docs/measured/quantization.md.
quantization: $(VENV)/compiler.stamp
	$(PIP) --editable '.[compiler,openvino]'
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quantization

# Slow: builds both example models with every cache, and writes docs/measured/caching.md.
caching: $(VENV)/compiler.stamp
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.caching

# Very slow: TensorRT engines of denoisers of 0.9 to 2.6 billion weights, in every precision; writes docs/measured/engines.md.
engines: $(VENV)/compiler.stamp
	$(PIP) --editable '.[compiler,tensorrt]'
	$(OFFLINE) $(BIN)/python -m benchmarks.engines

# Slow: what each technique of quantization wins, by the error of a call; writes docs/measured/techniques.md.
techniques: $(VENV)/compiler.stamp
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.techniques

# Very slow: an SD 1.5-sized denoiser in 32, 16 and 8 bits and 4, and NNCF's. It needs 25 GB of disk.
bench-unet: $(VENV)/compiler.stamp
	$(PIP) openvino nncf
	$(OFFLINE) $(BIN)/python -m benchmarks.unet_call

# Very slow: an SD 1.5-sized model, 50 steps with and without DeepCache. It needs 15 GB of disk.
bench-cache: $(VENV)/compiler.stamp
	$(OFFLINE) $(BIN)/python -m benchmarks.cached_unet

# Slow: captures full-size denoisers without weights, and writes docs/measured/stages.md.
stages: $(VENV)/compiler.stamp
	$(OFFLINE) $(BIN)/python -m benchmarks.stages

# Slow: traces, captures and stages whole models without weights, and writes docs/measured/whole_models.md.
whole-models: $(VENV)/compiler.stamp
	$(OFFLINE) $(BIN)/python -m benchmarks.whole_models

# Very slow: writes FLUX.2-klein-4B with random weights below build/bench, builds it and samples. It needs 35 GB of disk.
bench-whole: $(VENV)/compiler.stamp
	$(OFFLINE) $(BIN)/python -m benchmarks.full_size_build

# Very slow: writes SD 1.5- and FLUX.1-sized checkpoints (29 GB) below build/bench and builds each. It needs 60 GB of disk.
bench-build: $(VENV)/compiler.stamp
	$(OFFLINE) $(BIN)/python -m benchmarks.build

check: $(VENV)/dev.stamp .mypy/stamp
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/dev.stamp
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf $(VENV) $(OUT) .mypy .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist diffc.egg-info

$(VENV)/python.stamp:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/compiler.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	@echo "Installing diffc and its compiler into $(VENV) (some minutes the first time)"
	$(PIP) --editable '.[compiler]'
	touch $@

# What torch-tensorrt-rtx requires is gigabytes, and an older TensorRT for RTX; the tests do without.
$(VENV)/dev.stamp: $(VENV)/compiler.stamp
	@echo "Installing what the tests and checks need into $(VENV)"
	$(PIP) --editable '.[compiler,tensorrt,dev]'
	$(PIP) --no-deps dllist "torch-tensorrt-rtx; $(LINUX)"
	touch $@

# mypy cannot see through setuptools' package-dir: show it the packages under their import names.
.mypy/stamp: pyproject.toml
	mkdir -p .mypy/diffc
	ln -sfn ../../compiler ../../passes ../../plugins ../../runtime .mypy/diffc/
	touch $@
