# `make superb`: the main job, from nothing to the table. `make test`: the test-suite. Both install into .venv first.
# `superbit evaluate` makes everything that the table lacks. What is finished is skipped, what was interrupted resumes.
# python3 if superbit supports it, else the newest supported Python that is installed.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>&- && echo $$python && break; done)
# cpu: PyTorch's build without CUDA. cuda: the registry's build, which on Linux brings CUDA's libraries.
TORCH ?= cpu
SEED ?= 0
OUT ?= runs/superb
CORPORA ?= data/mini
SOURCES ?= data/sources

superbit := .venv/bin/superbit
installed := .venv/.installed
kernel := $(wildcard $(addprefix upstreams/packed/,engine/*.h engine/*.cpp kernel/*.h kernel/*.cpp kernel/arch/*.h kernel/arch/*.cpp))

.PHONY: superb install test test-slow test-matrix check architecture gpu-check

superb: install
	$(superbit) corpus mini --out $(CORPORA) --sources $(SOURCES)
	$(superbit) evaluate superb_mini --corpora $(CORPORA) --out $(OUT) --seed $(SEED) --jobs 2

install: $(installed)

extras := .[corpora,dev,onnx]
uv := $(shell command -v uv)
cost := $(if $(filter cpu,$(TORCH)),0.5 GB and takes 2.2 GB of disk,several GB)

$(installed): pyproject.toml $(kernel)
	@test -n "$(PYTHON)" || { echo "superbit needs Python 3.10 to 3.14: install one, or name it with PYTHON=/path/to/python"; exit 2; }
	@test "$(TORCH)" = cpu -o "$(TORCH)" = cuda || { echo "TORCH is $(TORCH), but must be cpu or cuda"; exit 2; }
	@echo "installing into .venv with $(PYTHON): downloads about $(cost) (TORCH=$(TORCH))"
ifneq ($(uv),)
	uv venv --quiet --allow-existing --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv
	uv pip install --quiet --python .venv/bin/python --torch-backend $(TORCH:cuda=auto) --editable '$(extras)'
else
	$(PYTHON) -m venv .venv
ifeq ($(TORCH),cpu)
	@.venv/bin/pip install --quiet --retries 0 --no-deps --extra-index-url https://download.pytorch.org/whl/cpu \
		'torch==2.13.0+cpu' 2>&- || echo "no torch 2.13.0+cpu for this Python and system: pip chooses a build of torch, perhaps with CUDA (several GB)"
endif
	.venv/bin/pip install --quiet --editable '$(extras)'
endif
	touch $@

# A file's tests stay in one process: they share what its fixtures made.
pytest := .venv/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test: install
	$(pytest) -m 'not slow'

test-slow: install
	$(pytest) -m slow

# The fast tests for each installed Python and the oldest and newest torch. ARGS=--help lists the options.
test-matrix:
	@$(PYTHON) .ci/test_matrix.py $(ARGS)

check: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

architecture: install
	.venv/bin/python docs/architecture.py

# The first minutes on a GPU machine: one JSON file and one table. Install with TORCH=cuda.
gpu-check: install
	@.venv/bin/python -m benchmarks.gpu_check --out runs/gpu-check --corpora $(CORPORA)
