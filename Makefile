# edge-tprune. `make help` lists the targets; every one makes .venv itself when it is missing.
#
#   make run                                        the whole journey with the built-in reference model, offline
#   make run MODEL=deit_tiny_patch16_224 WEIGHTS=w.safetensors DATA=imagenet/val BUDGETS=1.0,0.8,0.65,0.5

MODEL   = reference
WEIGHTS =
METHOD  = zero_tprune
BUDGETS = 1.0,0.9,0.8,0.65,0.5
DATA    =
CALIBRATION =
RUNTIME = onnxruntime
TARGET  = sm86
OUT     = out
BUNDLE  = $(OUT)/bundles/$(MODEL)-$(METHOD)
HOST    =
PROFILE = $(OUT)/profiles
ROUNDS  = 10
ARGS    =

PYTHON ?= python3
BIN    := .venv/bin
ET     := $(BIN)/edge-tprune
READY  := .venv/.ready

BUILD_ARGS = '$(MODEL)' $(if $(WEIGHTS),--weights '$(WEIGHTS)') --method '$(METHOD)' --budgets '$(BUDGETS)' --out '$(BUNDLE)'
comma     := ,
RUNTIMES   = onnxruntime$(if $(filter-out onnxruntime,$(RUNTIME)),$(comma)$(RUNTIME))
ENGINES    = $(patsubst onnxruntime,tensorrt,$(RUNTIME))
EVAL_ARGS  = '$(BUNDLE)' $(if $(DATA),--data '$(DATA)')

TABLE      = methods.json methods.md accuracy-speed.svg
KEPT       = --methods "zero_tprune bat tome tome:faithful=true diffrate random" --budgets 0.65,0.5
PAGES      = $(wildcard *.md docs/*.md) LICENSE deploy examples profiles

.DEFAULT_GOAL := help
.PHONY: help setup run quantize test lint docs results bench soak eval-methods eval-patterns eval-faithful eval-ablations eval-savings eval-dense eval-published engines build eval profile compare select report deploy finetune fit test-gpu board test-board train-reference train-segmentation clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv and install everything this machine needs

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[host,dev]'
	@touch $@

run: $(READY)  ## build, evaluate, profile, compare, select, report
	$(ET) build $(BUILD_ARGS) --runtime $(RUNTIMES) $(ARGS)
	$(ET) eval $(EVAL_ARGS)
	@echo "$(ET) profile '$(BUNDLE)' --out '$(OUT)/profiles' --rounds $(ROUNDS)"; \
	profile=$$($(ET) profile '$(BUNDLE)' --runtime $(RUNTIME) --out '$(OUT)/profiles' --rounds $(ROUNDS)) || exit $$?; \
	$(ET) compare "$$profile" && \
	{ $(ET) select "$$profile"; chosen=$$?; [ $$chosen -le 1 ]; } && \
	$(ET) report "$$profile" --out "$$profile/report.html" --picture "$$profile/accuracy-latency.svg" && \
	echo "profile: $$profile" && exit $$chosen

build: $(READY)  ## write the bundle: one checked graph per budget
	$(ET) build $(BUILD_ARGS) --runtime $(RUNTIMES) $(ARGS)

finetune: $(READY)  ## train the network for its budgets, without labels, into OUT/tuned-MODEL.safetensors (METHOD=bat DATA=photos ARGS='--time 20m')
	$(ET) finetune '$(MODEL)' $(if $(WEIGHTS),--weights '$(WEIGHTS)') --method '$(METHOD)' --budgets '$(BUDGETS)' $(if $(DATA),--data '$(DATA)') --out '$(OUT)/tuned-$(MODEL).safetensors' $(ARGS)

eval: $(READY)  ## measure accuracy per budget and store it in the bundle
	$(ET) eval $(EVAL_ARGS) $(ARGS)

profile: $(READY)  ## measure the bundle's budgets on this machine: latency, power, energy, memory
	$(ET) profile '$(BUNDLE)' --runtime $(RUNTIME) --out '$(OUT)/profiles' --rounds $(ROUNDS) $(ARGS)

fit: $(READY)  ## find the most accurate network within limits on this machine (ARGS='--max-p95-ms 8')
	$(ET) fit '$(MODEL)' $(if $(WEIGHTS),--weights '$(WEIGHTS)') --methods '$(METHOD)' $(if $(DATA),--data '$(DATA)') --out '$(OUT)/fits/$(MODEL)' $(ARGS)

quantize: $(READY)  ## compare INT8 with float32: build, eval, profile, compare, plot (WEIGHTS METHOD BUDGETS DATA; CALIBRATION=photos)
	$(ET) build $(BUILD_ARGS) --precision fp32,int8 $(if $(CALIBRATION),--calibration '$(CALIBRATION)') $(ARGS)
	$(ET) eval $(EVAL_ARGS) --precision int8
	@profile=$$($(ET) profile '$(BUNDLE)' --budgets '$(BUDGETS)' --precision fp32,int8 --out '$(OUT)/int8' --rounds $(ROUNDS)) || exit $$?; \
	$(ET) compare "$$profile" --markdown | tee "$$profile/table.md" && \
	$(ET) report "$$profile" --out "$$profile/report.html" --picture "$$profile/accuracy-latency.svg" && \
	$(BIN)/python -m tests.benchmarks.quantize '$(BUNDLE)' "$$profile" && echo "profile: $$profile"

compare: $(READY)  ## show one row per budget (PROFILE=directory)
	$(ET) compare '$(PROFILE)' $(ARGS)

select: $(READY)  ## choose a budget (ARGS='--max-p95-ms 8 --max-top1-drop 1')
	$(ET) select '$(PROFILE)' $(ARGS)

report: $(READY)  ## write one self-contained HTML page (PROFILE=directory)
	$(ET) report '$(PROFILE)' --out '$(OUT)/report.html' $(ARGS)

engines: $(READY)  ## build TensorRT engines of every budget (RUNTIME=tensorrt: for this machine's GPU; tensorrt-rtx: for the GPUs in TARGET)
	$(ET) build $(BUILD_ARGS) --runtime onnxruntime,$(ENGINES) $(if $(filter tensorrt-rtx,$(ENGINES)),--target '$(TARGET)') $(ARGS)
	$(if $(filter tensorrt,$(RUNTIME)),$(ET) engines '$(BUNDLE)' --runtime tensorrt)

test: $(READY)  ## run the test suite, in parallel
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-gpu: $(READY)  ## run the tests that need a CUDA GPU; lists what was skipped and why (CUDA bindings: pip install -e '.[cuda]')
	$(BIN)/python -m pytest -m gpu -rs $(ARGS)

lint: $(READY)  ## run ruff and mypy, and check the imports between rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## build the documentation as a site in out/site; fails on a dead link
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	rm -rf out/docs-source out/site && mkdir -p out/docs-source
	cp -r --parents $(PAGES) out/docs-source
	$(BIN)/python -m mkdocs build --strict --quiet

results: $(READY)  ## make the results in profiles/ again: the reference model's, and with WEIGHTS and DATA those of DeiT-Tiny
	$(BIN)/python -m tests.benchmarks.methods --methods "zero_tprune bat tome" --budgets 0.65,0.5 --rounds 0 --out out/results/methods-reference $(ARGS)
	cp $(addprefix out/results/methods-reference/,methods.json methods.md) profiles/methods-reference
	$(BIN)/python -m tests.benchmarks.dense --out out/results/dense-reference
	cp $(addprefix out/results/dense-reference/,dense.json dense.md) profiles/dense-reference
ifneq ($(and $(WEIGHTS),$(DATA)),)
	$(BIN)/python -m tests.benchmarks.methods $(KEPT) --model deit_tiny_patch16_224 --weights '$(WEIGHTS)' --data '$(DATA)' \
		--out out/results/methods-deit_tiny $(ARGS)
	cp $(addprefix out/results/methods-deit_tiny/,$(TABLE)) profiles/methods-deit_tiny-2-core-server
endif

eval-patterns: $(READY)  ## compare the patterns that methods ship with, with equal shares (MODEL WEIGHTS DATA)
	$(BIN)/python -m tests.benchmarks.patterns --model '$(MODEL)' $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(if $(DATA),--data '$(DATA)') $(ARGS)

eval-faithful: $(READY)  ## compare each method's default with the authors' form: KL and top-1 at the same budgets (MODEL WEIGHTS DATA)
	$(BIN)/python -m tests.benchmarks.faithful --model '$(MODEL)' $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(if $(DATA),--data '$(DATA)') $(ARGS)

eval-ablations: $(READY)  ## run the ablations of the papers of zero_tprune and bat, without training (MODEL WEIGHTS DATA)
	$(BIN)/python -m tests.benchmarks.ablations --model '$(MODEL)' $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(if $(DATA),--data '$(DATA)') $(ARGS)

eval-savings: $(READY)  ## compare each method with and without exact savings, at the same MACs (MODEL WEIGHTS DATA)
	$(BIN)/python -m tests.benchmarks.savings --model '$(MODEL)' $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(if $(DATA),--data '$(DATA)') $(ARGS)

eval-methods: $(READY)  ## compare every method at every budget: accuracy, latency, time relative to the slice oracle
	$(BIN)/python -m tests.benchmarks.methods --model '$(MODEL)' $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(if $(DATA),--data '$(DATA)') --out '$(OUT)/methods-$(MODEL)' $(ARGS)

eval-dense: $(READY)  ## measure segmentation on pruned features of the reference model: mIoU and speed-up per method and budget
	$(BIN)/python -m tests.benchmarks.dense --out '$(OUT)/dense-reference' $(ARGS)

eval-published: $(READY)  ## compare our methods with their authors' code (WEIGHTS of DeiT-Tiny, DATA with labels)
	$(BIN)/python -m tests.benchmarks.published --weights '$(WEIGHTS)' --data '$(DATA)' $(ARGS)

bench: $(READY)  ## time reductions against the slice oracle, the sampler, the latency model, and reading 10 million samples
	$(BIN)/python -m tests.benchmarks.observer
	$(BIN)/python -m tests.benchmarks.reduction $(ARGS)
	$(BIN)/python -m tests.benchmarks.latency
	$(BIN)/python -m tests.benchmarks.analysis

soak: $(READY)  ## check that memory does not grow in a long measurement (ARGS='--minutes 30')
	$(BIN)/python -m tests.benchmarks.soak $(ARGS)

train-reference: $(READY)  ## retrain the reference model's shipped weights, from seeds
	$(BIN)/python -m edge_tprune.models.train_reference $(ARGS)

train-segmentation: $(READY)  ## retrain the shipped head of the dense task on the reference model's features, from seeds
	$(BIN)/python -m edge_tprune.models.train_segmentation $(ARGS)

deploy: $(READY)  ## install the agent on a board and copy the bundle to it (HOST=user@board ARGS="--profile '' --collect profiles")
	$(ET) deploy '$(BUNDLE)' '$(HOST)' $(ARGS)

board: $(READY)  ## build the emulated board: Debian for arm64 under qemu, with SSH (needs root; cached in .board)
	$(BIN)/python deploy/emulated-board/board.py build || [ $$? -eq 3 ]

test-board: $(READY)  ## test deploying to the emulated board over real SSH, with failures on the way
	$(BIN)/python -m pytest -m board $(ARGS) || [ $$? -eq 5 ]

clean:  ## remove the outputs of builds and runs, but keep .venv
	rm -rf out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
