# Everything there is to do in this repository. `make` alone lists it.

PYTHON ?= python3
VENV ?= .venv
# The build of PyTorch. It is installed first and alone, so that pip may take a CPU build where it finds one.
TORCH ?= torch==2.13.0
# An index to look for PyTorch on, besides the usual one. Empty: only the usual one.
TORCH_INDEX ?=
# `off` installs without the C++ kernels: no compiler is needed, and everything runs slower.
NATIVE ?= on
# Processes that share the tests: each computes with as many threads as there are cores, and holds two or three GB at times.
TEST_JOBS ?= 2

BIN := $(VENV)/bin
MODEL := .models/SmolLM2-135M-Instruct.Q4_1.gguf
# Under Google's terms for Gemma, so neither fetched nor tested unless asked for, and never shipped.
GEMMA := .models/gemma-3-270m.Q4_K_M.gguf
SETTINGS := $(VENV)/settings.txt
BUILD_TOOLS := $(VENV)/build-tools
PACKAGES := $(VENV)/packages
KERNELS := $(VENV)/kernels
ALL_KERNELS := $(VENV)/all-kernels
RUNNING := $(VENV)/running
DEVELOPMENT := $(VENV)/development
INSTALLED := $(VENV)/installed
LOGS := $(VENV)/logs
FIXTURES := .fixtures/complete
SOURCES := $(shell find kernels/csrc -type f 2>/dev/null)
WITHOUT_KERNELS := $(if $(filter off,$(NATIVE)),--config-settings wheel.cmake=false)
REPORTS := docs/reports
# Clients that cannot live in the virtual environment: Python packages that want other versions, and npm packages.
CLIENTS := .clients
APART := litellm==1.106.2 instructor>=1.17 pydantic-ai-slim[openai]>=2
# Written for the binding of mistral.rs, which it would install over this project's package. Its environment sees ours.
PUBLISHED := $(CLIENTS)/llama-index-mistral-rs
# Scripts that write the golden files in tests/ from programs that nobody here wrote, and the Python that has these.
ORACLES := $(sort $(wildcard scripts/make_*.py))
ORACLE_PYTHON ?= $(BIN)/python

export PIP_DISABLE_PIP_VERSION_CHECK = 1
# A step prints its title, and everything else only when it fails.
STEP = @scripts/step.sh
PIP_INSTALL = $(BIN)/pip install
INSTALL_PROJECT = $(PIP_INSTALL) --no-deps --no-build-isolation --editable . $(WITHOUT_KERNELS)
# A list of pyproject.toml, a requirement a line.
listed = $(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]$(1), sep="\n")'

.PHONY: help venv model gemma fixtures chat test test-gemma lint check sanitize sanitize-quick cross soak clients browser oracles bench wheel clean FORCE
.DELETE_ON_ERROR:

help: ## list the commands
	@echo "Commands:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Settings: PYTHON=$(PYTHON) VENV=$(VENV) TORCH=$(TORCH) TORCH_INDEX=$(TORCH_INDEX) NATIVE=$(NATIVE)"

chat: $(RUNNING) $(MODEL) ## set up what running needs and chat with the default model
	@$(BIN)/mistralrs -i

test: export HF_HUB_OFFLINE = 1
test: $(INSTALLED) $(MODEL) $(FIXTURES) ## set up what tests need too and run them
	$(BIN)/python -m pytest --numprocesses=$(TEST_JOBS) --dist=worksteal -m "not network and not gpu and not browser"

test-gemma: export HF_HUB_OFFLINE = 1
test-gemma: $(INSTALLED) $(GEMMA) ## run the tests that need Gemma 3 270M
	$(BIN)/python -m pytest tests/gemma

lint: $(INSTALLED) ## formatter, linter, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: export HF_HUB_OFFLINE = 1
check: lint ## the same, and the fast tests
	$(BIN)/python -m pytest -q -m "not slow and not model and not network and not gpu and not browser"

venv: $(INSTALLED) ## make the virtual environment; install and build everything, what development needs too

model: $(MODEL) ## fetch the default model

gemma: $(GEMMA) ## fetch Gemma 3 270M, a second model for the tests, under its own terms

fixtures: $(FIXTURES) ## fetch the vocabularies, the JSON Schema Test Suite and CommonMark's examples that tests compare with

sanitize: $(INSTALLED) ## the kernels, their pool and the loaders under address, undefined-behaviour and thread sanitizers
	$(BIN)/python scripts/sanitize.py

sanitize-quick: $(INSTALLED) ## the same with one instruction set and few tests
	$(BIN)/python scripts/sanitize.py --quick

cross: $(INSTALLED) ## compare the kernels for aarch64 and with AMX, emulated, with those of this machine
	$(BIN)/python scripts/cross_check.py

# Each drill is a target of its own. Those that measure time run alone and first; of the others SOAK_JOBS run at once, the
# longest first. One that finds something stops no other.
SOAK_JOBS ?= 1
TIMED := drill-latency drill-server-load
DRILLS := drill-quantized-whole drill-adapters drill-adapter-schedules drill-gguf-mutations drill-grammar-outputs \
  drill-schema-cases drill-response-chunkings drill-tool-answers drill-hostile-requests drill-killed-writers \
  drill-killed-chats drill-killed-batches drill-chat-edits drill-markdown-chunkings
drill-latency: DRILL = benchmarks.latency $(MODEL)
drill-server-load: DRILL = tests.soak.server_load --seconds 180 --streams 64
drill-quantized-whole: DRILL = tests.soak.quantized_whole --count 300
drill-adapters: DRILL = tests.soak.adapter_cells
drill-adapter-schedules: DRILL = tests.soak.adapter_schedules --count 500
drill-gguf-mutations: DRILL = tests.soak.gguf_mutations --count 1000 --load tests.soak.loads:load_and_answer
drill-grammar-outputs: DRILL = tests.soak.grammar_outputs --count 500 --hostile 1000
drill-schema-cases: DRILL = tests.soak.schema_cases --count 2000
drill-response-chunkings: DRILL = tests.soak.response_chunkings --count 10000
drill-tool-answers: DRILL = tests.soak.tool_answers --count 1000
drill-hostile-requests: DRILL = tests.soak.hostile --count 2000 --model $(MODEL)
drill-killed-writers: DRILL = tests.soak.killed_writers --kills 50
drill-killed-chats: DRILL = tests.soak.killed_chats --kills 100
drill-killed-batches: DRILL = tests.soak.killed_batches --kills 50
drill-chat-edits: DRILL = tests.soak.chat_edits --actions 200
drill-markdown-chunkings: DRILL = tests.soak.markdown_chunkings --chunkings 20

soak: $(INSTALLED) $(MODEL) $(FIXTURES) ## the drills with their full counts; they write reports
	@status=0; $(MAKE) --keep-going $(TIMED) || status=1; \
	  $(MAKE) --keep-going --jobs=$(SOAK_JOBS) --output-sync=target $(DRILLS) || status=1; exit $$status

$(TIMED) $(DRILLS): drill-%: $(INSTALLED) $(MODEL) $(FIXTURES)
	@mkdir -p $(REPORTS)
	$(BIN)/python -m $(DRILL) --report $(REPORTS)/$*.md

clients: $(INSTALLED) $(MODEL) ## fetch the clients of others and run the tests that speak to the server with them
	$(BIN)/pip install --editable ".[dev,clients]" --no-build-isolation $(WITHOUT_KERNELS)
	@set -e; for package in $(foreach package,$(APART),"$(package)"); do \
	  home="$(CLIENTS)/$$(echo "$$package" | sed 's/[^a-z-].*//; s/-slim$$//')"; \
	  test -d "$$home" || $(PYTHON) -m venv "$$home"; "$$home/bin/pip" install "$$package"; done
	$(CLIENTS)/litellm/bin/pip install mcp  # which its calls with tools import
	test -d $(PUBLISHED) || $(PYTHON) -m venv $(PUBLISHED)
	$(PUBLISHED)/bin/pip install "llama-index-core<0.15"
	$(PUBLISHED)/bin/pip install --no-deps "llama-index-llms-mistral-rs==0.6.0"
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  >"$$($(PUBLISHED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	if command -v npm >/dev/null; then npm install --prefix $(CLIENTS)/npm openai@6 zod; fi
	$(BIN)/python -m pytest -m clients tests/clients tests/examples

browser: $(INSTALLED) ## fetch what drives Chromium and run the tests of the server's page in it
	@for program in chromium npm; do command -v "$$program" >/dev/null || { echo "$$program was not found. Install it (for example: apt-get install $$program)" >&2; exit 1; }; done
	npm install --prefix $(CLIENTS)/npm playwright-core@1 axe-core@4
	$(BIN)/python -m pytest -m browser tests/browser

oracles: $(INSTALLED) $(MODEL) $(FIXTURES) ## make the committed golden files again; ORACLE_PYTHON has llama-cpp-python
	@set -e; for script in $(ORACLES); do echo "$$script"; $(ORACLE_PYTHON) "$$script"; done

bench: $(RUNNING) $(MODEL) ## measure prompt and decode speed of the default model
	$(BIN)/mistralrs bench

.PHONY: screens first-minutes
screens: $(INSTALLED) $(MODEL) ## draw the README's pictures and write its tables anew
	$(BIN)/python scripts/record_screens.py
	$(BIN)/python scripts/write_readme_tables.py

first-minutes: $(INSTALLED) ## record in tmux what a new user sees, from a fresh clone on (some minutes)
	$(BIN)/python scripts/first_minutes.py

wheel: $(INSTALLED) ## build the wheel into dist/
	$(BIN)/pip wheel --no-deps --no-build-isolation --wheel-dir dist . $(WITHOUT_KERNELS)

clean: ## remove what was built; the virtual environment, models and fixtures stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; choose one with: make PYTHON=/path/to/python3")'
	$(STEP) "virtual environment: $(VENV)" $(LOGS)/venv.log $(PYTHON) -m venv $(VENV)

# Rewritten only when a setting changed, so that what depends on it is made again exactly then.
$(SETTINGS): $(VENV)/pyvenv.cfg FORCE
	@test "$$(cat $@ 2>/dev/null)" = "$(TORCH) $(TORCH_INDEX) $(NATIVE)" || echo "$(TORCH) $(TORCH_INDEX) $(NATIVE)" >$@

# The kernels are built while packages are fetched. The compiler is asked for first: a machine without one learns it at once.
$(RUNNING): $(SETTINGS) pyproject.toml CMakeLists.txt $(SOURCES)
	$(NEEDS_COMPILER)
	@$(MAKE) --no-print-directory --silent --jobs=2 $(KERNELS) $(PACKAGES)
	@touch $@

ifneq ($(NATIVE),off)
NEEDS_COMPILER = @command -v "$${CXX:-c++}" >/dev/null || { echo "No C++ compiler ($${CXX:-c++}) was found. Install one (for example: apt-get install g++), or do without the kernels: make NATIVE=off ..." >&2; exit 1; }
endif

$(PACKAGES): $(SETTINGS) pyproject.toml
	$(STEP) "PyTorch: $(TORCH)" $(LOGS)/torch.log $(PIP_INSTALL) "$(TORCH)" $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)")
	@$(call listed,["dependencies"]) >$@.txt
	$(STEP) "packages that running needs" $(LOGS)/packages.log $(PIP_INSTALL) --requirement $@.txt
	@touch $@

# The tools that build the kernels. They stay in the environment: pip would put them into a new place each time, and
# CMake would build everything anew. CMake and Ninja come from pip only where the machine has none.
$(BUILD_TOOLS): $(SETTINGS)
	$(STEP) "build tools" $(LOGS)/build-tools.log $(PIP_INSTALL) "scikit-build-core>=0.11" $$(command -v cmake >/dev/null || echo "cmake>=3.18") $$(command -v ninja >/dev/null || echo ninja)
	@touch $@

# Running needs the kernels of this machine's processor alone, which have a build folder of their own. An environment that
# development has used gets all of them.
$(KERNELS): ISA = $(if $(wildcard $(INSTALLED)),,$(shell $(PYTHON) scripts/host_isa.py))
$(KERNELS): $(BUILD_TOOLS) pyproject.toml CMakeLists.txt $(SOURCES)
	@$(if $(ISA),rm -f $(ALL_KERNELS))
	$(STEP) "mistralrs$(if $(WITHOUT_KERNELS),, and its kernels$(if $(ISA), for $(ISA)))" $(LOGS)/kernels.log $(INSTALL_PROJECT) $(if $(ISA),--config-settings build-dir=build/$(ISA) --config-settings cmake.define.MRS_ISAS=$(ISA))
	@touch $@

$(ALL_KERNELS): $(BUILD_TOOLS) pyproject.toml CMakeLists.txt $(SOURCES)
	$(STEP) "mistralrs$(if $(WITHOUT_KERNELS),, and the kernels of all processors)" $(LOGS)/all-kernels.log $(INSTALL_PROJECT)
	@touch $@

$(DEVELOPMENT): $(PACKAGES) pyproject.toml
	@$(call listed,["optional-dependencies"]["dev"]) >$@.txt
	$(STEP) "packages that development needs" $(LOGS)/development.log $(PIP_INSTALL) --requirement $@.txt
	@touch $@

# All that running needs is in it.
$(INSTALLED): $(SETTINGS) pyproject.toml CMakeLists.txt $(SOURCES)
	$(NEEDS_COMPILER)
	@$(MAKE) --no-print-directory --silent --jobs=2 $(ALL_KERNELS) $(DEVELOPMENT)
	@touch $(KERNELS) $(RUNNING) $@

$(MODEL): | $(VENV)/pyvenv.cfg
	$(STEP) "model: $(notdir $@)" $(LOGS)/model.log $(BIN)/python scripts/fetch_model.py $@

$(GEMMA): | $(VENV)/pyvenv.cfg
	$(BIN)/python scripts/fetch_gemma.py $@

$(FIXTURES): scripts/fetch_vocabularies.py scripts/fetch_schema_suite.py scripts/fetch_commonmark.py | $(VENV)/pyvenv.cfg
	$(BIN)/python scripts/fetch_vocabularies.py .fixtures/vocabularies
	$(BIN)/python scripts/fetch_schema_suite.py .fixtures/json-schema-suite
	$(BIN)/python scripts/fetch_commonmark.py .fixtures/commonmark
	@touch $@

FORCE:
