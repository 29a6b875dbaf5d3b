# Each target makes .venv itself when it is missing or older than setup.cfg or constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-full lint clean

demo: $(STAMP)
	$(BIN)/rescalenet demo --out out/demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-full: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

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
	rm -rf .venv out runs build dist *.egg-info
