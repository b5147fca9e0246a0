# Every target sets up .venv by itself (tools/venv.py); when nothing changed that takes a tenth of a second.
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

RUN := .venv/bin/python
# A file stays with one worker: its fixtures are made, and its programs compiled, once.
PYTEST := $(RUN) -m pytest -n $(WORKERS) --dist loadfile

# Two pytest workers on two cores: one thread each.
THREADS := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
# Tests and examples mostly compile: what a process has compiled, the others and later runs load, in
# any clone on this machine. JAX's key holds the program, its options and the version of XLA.
KEPT_PROGRAMS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/implicitppl/programs
PROGRAMS := JAX_COMPILATION_CACHE_DIR=$(KEPT_PROGRAMS) \
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
XLA_THREADS := --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1
ONE_THREAD := $(THREADS) $(PROGRAMS) XLA_FLAGS="$(XLA_THREADS)"
# All but statistical tests compile more than they compute: compile without optimising. (The flags of
# XLA for that, in XLA_FLAGS, are overruled by JAX.)
FAST_COMPILE := $(ONE_THREAD) JAX_DISABLE_MOST_OPTIMIZATIONS=1
# Where tests are chosen by name, one of two runs may have none of them.
OR_NONE := $(if $(ARGS),|| test $$? -eq 5)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all mutants doctest examples check format bench docs clean \
  clean-programs

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r name text; do \
	  printf '%-16s %s\n' "$$name" "$$text"; done

setup: ## make or mend .venv
	@$(PYTHON) tools/venv.py

demo: setup ## the main example, on real data (ARGS="--quick", ARGS="--help")
	$(RUN) examples/quickstart.py $(ARGS)

test: setup ## the fast tests (ARGS="-k name")
	@echo "Fast tests of every package: each capability, each closed form; not what is marked slow, statistical or"
	@echo "exhaustive. Up to 25 minutes on two cores the first time, less later: programs are kept in"
	@echo "$(KEPT_PROGRAMS)"
	$(FAST_COMPILE) $(PYTEST) -m "not slow and not statistical and not exhaustive" $(ARGS)

test-slow: setup ## the slow and the statistical tests
	$(FAST_COMPILE) $(PYTEST) -m "slow and not statistical and not exhaustive" $(ARGS) $(OR_NONE)
	$(ONE_THREAD) $(PYTEST) -m "statistical and not exhaustive" $(ARGS) $(OR_NONE)

test-all: setup ## every test, also those that CI leaves out
	$(ONE_THREAD) $(PYTEST) $(ARGS)

mutants: setup ## the power of the tests: see that they find faults of one line (ARGS="--only linalg")
	$(FAST_COMPILE) $(RUN) tools/mutants.py --baseline $(ARGS)
	$(FAST_COMPILE) $(RUN) tools/mutants.py $(ARGS)

doctest: setup ## the examples in the docstrings
	$(FAST_COMPILE) $(PYTEST) --doctest-modules implicitppl $(ARGS)

examples: setup ## every example in its small form
	@set -e; for script in examples/[a-z]*.py; do \
	  echo "== $$script --quick"; \
	  $(ONE_THREAD) $(RUN) "$$script" --quick --out "output/quick/$$(basename "$$script" .py)"; \
	done

check: setup ## lint, format, types, import direction, spelling, the table of faults
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -c "from importlinter.cli import lint_imports_command as lint; lint()"
	$(RUN) -m codespell_lib
	$(RUN) tools/mutants.py --check

format: setup ## apply the formatter and the lint's safe repairs
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: setup ## the accuracy benchmark in its short form, on bundled data
	$(ONE_THREAD) $(RUN) -m benchmarks.accuracy.run --quick --out output/accuracy-quick.jsonl $(ARGS)

docs: setup ## the documentation, warnings are errors (docs/_build/html/index.html)
	$(RUN) -m sphinx -W --keep-going -b html docs docs/_build/html

clean-programs: ## remove the compiled programs that all clones share
	rm -rf "$(KEPT_PROGRAMS)"

clean: ## remove what the other targets made, but not .venv and not the kept programs
	rm -rf docs/_build output build dist .cache
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
