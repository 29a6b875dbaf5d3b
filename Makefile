# Each target makes .venv itself when it is missing or older than setup.cfg or constraints.txt; test-interop layers an
# environment with the other projects over it, test-export one with the packages of all export targets; test-lowest makes
# one with the lower bounds of setup.cfg.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
INTEROP := .venv-interop
LOWEST := .venv-lowest
EXPORT := .venv-export
BROWSER := playwright-core@1.65.1
PINNED := $(addprefix tests/interop/requirements-,detectron2.txt fairseq.txt pytorchvideo.txt)
FETCHED := tests/interop/install_detectron2.py tests/interop/fetch_timm_tests.py
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-full test-lowest test-gpu test-export test-export-full test-interop lint clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-14s%s\n' "$$name" "$$text"; done

demo: $(STAMP)  ## run small examples of every task, write out/demo/report.md (a few minutes)
	$(BIN)/rescalenet demo --out out/demo --overwrite

test: $(STAMP)  ## run the tests and the examples in docstrings, without the slow ones
	$(PYTEST) -m "not slow"

test-full: $(STAMP)  ## run all tests, print which lines they do not reach, then test-lowest
	$(PYTEST) --cov --cov-report=term:skip-covered
	$(MAKE) test-lowest

test-lowest: $(LOWEST)/.installed  ## run the tests of test with the lower bounds of setup.cfg (Python 3.11)
	$(LOWEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

test-gpu: $(STAMP)  ## run the tests that need a CUDA device, which the other targets do not use
	RESCALENET_TEST_DEVICE=cuda $(PYTEST) -m gpu

test-export: $(EXPORT)/.installed  ## run every export target in its own runtime, without the slow tests
	$(EXPORT)/bin/python -m pytest -n 2 --dist worksteal -m "not slow" tests/export

test-export-full: $(EXPORT)/.installed  ## run every export target with every family of nets, in its own runtime
	$(EXPORT)/bin/python -m pytest -n 2 --dist worksteal tests/export

test-interop: $(INTEROP)/.installed  ## run the tests inside detectron2, fairseq, PyTorchVideo and timm (Python 3.11)
	$(INTEROP)/bin/python -m pytest tests/interop

$(LOWEST)/.installed: $(STAMP) tools/lowest.py constraints-lowest.txt
	rm -rf $(LOWEST)
	$(BIN)/python -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q --upgrade pip
	$(BIN)/python tools/lowest.py > $(LOWEST)/bounds.txt
	$(LOWEST)/bin/python -m pip install -q -c $(LOWEST)/bounds.txt -c constraints-lowest.txt -e '.[dev]'
	touch $@

$(EXPORT)/.installed: $(STAMP) tests/export/requirements.txt
	rm -rf $(EXPORT)
	$(BIN)/python -m venv $(EXPORT)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $$(echo $(EXPORT)/lib/python3.*/site-packages)/base.pth
	$(EXPORT)/bin/python -m pip install -q --no-deps -r tests/export/requirements.txt
	npm install --prefix $(EXPORT) --silent --no-save --no-package-lock --ignore-scripts $(BROWSER) \
		|| echo "$(BROWSER) was not installed by npm: the pages of onnx-web are not tested in a browser"
	touch $@

$(INTEROP)/.installed: $(STAMP) $(PINNED) $(FETCHED)
	rm -rf $(INTEROP)
	$(BIN)/python -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install -q --no-deps --require-hashes $(addprefix -r ,$(PINNED))
	for script in $(FETCHED); do $(INTEROP)/bin/python $$script || exit 1; done
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $$(echo $(INTEROP)/lib/python3.*/site-packages)/base.pth
	touch $@

lint: $(STAMP)  ## check style, format, spelling and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit('Python 3.11 or 3.12 is needed, not %d.%d: make PYTHON=python3.12' % v)"
	rm -rf *.egg-info  # an old one would hide the new entry points
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:  ## remove environments, runs, outputs and builds
	rm -rf .venv $(INTEROP) $(LOWEST) $(EXPORT) out runs build dist htmlcov .coverage *.egg-info
