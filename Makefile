# Two commands do all: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VIEWERS := $(VENV)/.viewers
PORT ?= 8000
PYTEST_ARGS ?= -n 2 --dist loadfile

.PHONY: demo test test-viewers check setup clean

demo: $(READY)  ## start the server on sample studies; ONCE=1: the whole loop once, print JSON, exit
	@$(BIN)/sparsight demo --port $(PORT) $(if $(ONCE),--once)

test: $(READY) check  ## all checks and tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	$(MAKE) test-viewers

test-viewers: $(VIEWERS)  ## clients of viewers: 3D Slicer, in a process of its own (its library and itk both bring ITK, and clash)
	$(BIN)/python -m pytest tests/clients/slicer

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(READY)

# Every package is listed in the lock, so nothing is resolved: MONAI Label's own metadata cannot be satisfied (README).
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# Slicer's library serves only the tests of its client: servers do without its 800 MB.
$(VIEWERS): $(READY) requirements-viewers.lock
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-viewers.lock
	touch $@

clean:
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache
