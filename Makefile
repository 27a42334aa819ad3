# The project's commands. `make` alone lists them. GNU make 3.81 or later, Linux and macOS; Windows: see README.md.
# PYTHON makes the environment VENV (a relative path): 3.11, 3.12 or 3.13
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
SITE = book/_build/html/index.html
# Victims are trained once for all targets and kept in the project; another folder: LABKIT_CACHE=... make book
LABKIT_CACHE ?= $(CURDIR)/.cache/labkit
export LABKIT_CACHE
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# Two at a time, one thread each: tiny networks gain little from a second thread, and one computes while the other draws.
PAIRS = -n 2 --dist loadfile
# Runs are kept: the website and the tests of the labs read them instead of running the notebooks again.
NBVAL = $(BIN)/python -m pytest -q $(PAIRS) -p labkit.course.keep_runs --nbval-lax --nbval-current-env \
	--nbval-cell-timeout=240

# $(call step,NAME,COMMANDS): run the commands, note the seconds for the summary of `make test`
step = @mkdir -p .cache; echo "== $(1)"; start=$$(date +%s); { $(2); } && \
	printf '%-12s %4d s\n' '$(1)' $$(($$(date +%s) - start)) >> .cache/summary.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help book test begin lint unit release notebooks whole wheel published lab demo-class bench clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

# --- the two commands -------------------------------------------------------------------------------------------------

book: $(INSTALLED) ## environment, labs executed, course website built strictly; prints where it is
	$(call step,book,$(BIN)/labkit site)
	@echo "The course website: file://$(CURDIR)/$(SITE)"

# Cheap steps first: a typo fails in seconds, not after the labs have run.
test: export LABKIT_PROFILE = quick
test: begin lint unit notebooks book whole published ## everything CI checks: style, types, unit tests, all notebooks, website, leaks
	@echo "== every step passed"; cat .cache/summary.txt

# --- their steps ------------------------------------------------------------------------------------------------------

begin:
	@mkdir -p .cache; : > .cache/summary.txt

lint: $(INSTALLED) ## ruff (code and notebooks) and pyright
	$(call step,lint,$(BIN)/ruff check . && $(BIN)/ruff format --check . && \
		$(BIN)/pyright --pythonpath $(BIN)/python)

unit: export OMP_NUM_THREADS = 1
unit: $(INSTALLED) ## unit tests
	$(call step,unit,$(BIN)/python -m pytest -q $(PAIRS) tests -m "not whole")

notebooks: export OMP_NUM_THREADS = 1
notebooks: release ## run every solved and every student notebook from top to bottom
	$(call step,solved,$(NBVAL) labs)
	$(call step,students,$(NBVAL) dist/student)

whole: $(INSTALLED) ## tests of whole runs of the labs and of the built website; quick after `make notebooks book`
	$(call step,whole,$(BIN)/python -m pytest -q tests -m whole)

release: $(INSTALLED) ## student notebooks and dist/student.zip
	@rm -rf dist/student
	$(call step,release,$(BIN)/labkit release)

wheel: $(INSTALLED) ## the package, dist/labkit-*.whl
	@rm -rf build dist/*.whl
	$(call step,wheel,$(BIN)/python -m pip wheel -q --no-deps --wheel-dir dist .)

published: release wheel ## is a solution in the site, the zip or the wheel? after `make book`
	$(call step,published,$(BIN)/python -m pytest -q tests/test_leaks.py -k built_last)

# --- day to day -------------------------------------------------------------------------------------------------------

lab: release ## JupyterLab on work/: your copies of the student notebooks, never overwritten
	@mkdir -p work
	@for lab in dist/student/*.ipynb; do mine="work/$${lab##*/}"; test -e "$$mine" || cp "$$lab" "$$mine"; done
	$(BIN)/jupyter-lab --ServerApp.root_dir=work

demo-class: $(INSTALLED) ## thirty simulated submissions, graded: build/demo/grades.csv and pages
	$(BIN)/python -m tests.demo_class build/demo/submissions
	$(call step,demo-class,$(BIN)/labkit grade build/demo/submissions --out build/demo/grades.csv --jobs 2)
	@cat build/demo/grades.csv

bench: $(INSTALLED) ## measure: every script in benchmarks/; real data from $LABKIT_DATA where it is set
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

clean: ## remove everything generated, except .venv and work/
	rm -rf book/_build book/labs dist build .cache .pytest_cache .ruff_cache labkit.egg-info

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "make: expected Python 3.11, 3.12 or 3.13; got $$($(PYTHON) --version 2>&1) as '$(PYTHON)'." >&2; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing labkit and its tools into $(VENV) (once; PyTorch is large, allow some minutes)"
	$(call step,environment,$(BIN)/python -m pip install -q -e '.[dev]')
	@touch $@
