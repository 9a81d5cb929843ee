# `make superb`: the main job, from nothing to the table. `make test`: the test-suite. Both install into .venv first.
# Stages run in parallel on two cores. Finished stages are skipped, interrupted ones resume.
PYTHON ?= python3
SEED ?= 0
OUT ?= runs/superb
CORPORA ?= data/mini
SOURCES ?= data/sources

superbit := .venv/bin/superbit
installed := .venv/.installed
corpus := $(CORPORA)/corpus.json
manifest := $(CORPORA)/manifest/train.tsv
labels := $(OUT)/labels/mfcc100_25hz_frame1/train.km
checkpoints := $(OUT)/checkpoints
sparseformer := $(checkpoints)/sparseformer_dn_mini.safetensors
binary := $(checkpoints)/sparseformer_dn_mini_w1a1.safetensors
transformer := $(checkpoints)/transformer_mini.safetensors
evaluate := SUPERBIT_CHECKPOINTS=$(checkpoints) $(superbit) evaluate superb_mini \
	--corpora $(CORPORA) --out $(OUT) --seed $(SEED)
kernel := $(wildcard $(addprefix upstreams/packed/,engine/*.h engine/*.cpp kernel/*.h kernel/*.cpp kernel/arch/*.h kernel/arch/*.cpp))
train := --manifest $(manifest) --out $(OUT) --seed $(SEED)

.PHONY: superb float-cells install test test-slow check architecture

superb: install
	@$(MAKE) --no-print-directory -j2 $(binary) float-cells
	$(evaluate) --jobs 2
	$(superbit) report $(OUT)

# One core is free while the other distils: it computes about as many cells as fit into that time.
float-cells: $(transformer) $(sparseformer)
	test -f $(binary) || $(evaluate) --jobs 1 --only 'fbank/*'

install: $(installed)

$(installed): pyproject.toml $(kernel)
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable '.[corpora,dev,onnx]'
	touch $@

$(corpus): | $(installed)
	$(superbit) corpus mini --out $(CORPORA) --sources $(SOURCES)

$(labels): | $(corpus)
	$(superbit) labels mfcc --manifest $(manifest) --out $(@D) --seed $(SEED) --n-init 5 --workers 2

$(sparseformer) $(transformer): $(checkpoints)/%.safetensors: | $(labels)
	$(superbit) pretrain $* $(train) --labels $(OUT)/labels

$(binary): | $(sparseformer)
	$(superbit) quantize $(sparseformer) --bits w1a1 --schedule w1a32,w1a1 $(train)

# A file's tests stay in one process: they share what its fixtures made.
pytest := .venv/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test: install
	$(pytest) -m 'not slow'

test-slow: install
	$(pytest) -m slow

check: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

architecture: install
	.venv/bin/python docs/architecture.py
