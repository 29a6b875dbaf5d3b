# Each target makes .venv itself when it is missing or older than setup.cfg or constraints.txt; test-interop layers an
# environment with the other projects over it.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
INTEROP := .venv-interop
PINNED := tests/interop/requirements-detectron2.txt tests/interop/requirements-fairseq.txt

.PHONY: demo test test-full test-interop lint clean

demo: $(STAMP)
	$(BIN)/rescalenet demo --out out/demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-full: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-interop: $(INTEROP)/.installed
	$(INTEROP)/bin/python -m pytest tests/interop

$(INTEROP)/.installed: $(STAMP) $(PINNED) tests/interop/install_detectron2.py
	rm -rf $(INTEROP)
	$(BIN)/python -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install -q --no-deps --require-hashes $(addprefix -r ,$(PINNED))
	$(INTEROP)/bin/python tests/interop/install_detectron2.py
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $$(echo $(INTEROP)/lib/python3.*/site-packages)/base.pth
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit('Python 3.11 or 3.12 is needed, not %d.%d: make PYTHON=python3.12' % v)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv $(INTEROP) out runs build dist *.egg-info
