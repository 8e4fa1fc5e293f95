VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
STRESS_S ?= 600
KSERVE ?= .venv-kserve
JOBS   ?= 3
FOLDERS := protocol shm backends server tools

.DEFAULT_GOAL := help
.PHONY: help dev serve test test-small-shm check bench startup stress kserve docs proto clean

help:
	@echo "make serve   install, build the sample archives, start the server on them, show a prediction"
	@echo "make test    install, run every test"
	@echo "make check   format, lint and strict types"
	@echo "make bench   our server beside its own ceilings, as ratios"
	@echo "make startup command to first prediction, and what an idle server costs; beside TorchServe with PEERS=VENV"
	@echo "make test-small-shm  every test with little and with no /dev/shm"
	@echo "make stress  a real server under everything at once, for STRESS_S=600 seconds"
	@echo "make kserve  what KServe's client gets from a server; installs it into $(KSERVE), 450 MB"
	@echo "make docs    whether the files, flags, keys and examples in README.md and docs/ exist and are taken"
	@echo "make proto   make the modules of protocol/grpc/*.proto anew"
	@echo "make dev     install into $(VENV), nothing else"
	@echo "make clean   remove what the targets above made"

# The stamp holds the last install; a change of the package list or the constraints renews it.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,dev]'
	mkdir -p .typing/ringserve
	for folder in $(FOLDERS); do ln -sfn ../../$$folder .typing/ringserve/$$folder; done
	touch $@

dev: $(VENV)/.installed

serve: dev
	$(BIN)/python examples/digits/serve.py

# Three at a time: most tests of processes wait most of the time. A file's tests stay together, with the servers they share.
test: dev
	$(BIN)/pytest -q -n $(JOBS) --dist loadfile

check: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: dev
	$(BIN)/python benchmarks/bench.py $(if $(ONLY),--only $(ONLY))

startup: dev
	$(BIN)/python benchmarks/startup.py $(if $(PEERS),--peers $(PEERS))

# As in a container with 64 MB of /dev/shm, and in one without any. Needs the right to mount.
test-small-shm: dev
	tests/in_small_shm.sh 64m $(BIN)/pytest -q
	tests/in_small_shm.sh none $(BIN)/pytest -q

stress: dev
	$(BIN)/python tests/stress/stress.py --seconds $(STRESS_S) --front-ends 2 --workers 3 $(if $(SEED),--seed $(SEED))

# An environment of its own: the client wants other versions than ours.
$(KSERVE)/.installed:
	$(PYTHON) -m venv $(KSERVE)
	$(KSERVE)/bin/pip install --quiet --disable-pip-version-check 'kserve==0.21.*'
	touch $@

kserve: dev $(KSERVE)/.installed
	$(BIN)/python -P tests/e2e/kserve/run.py $(KSERVE)/bin/python

docs: dev
	$(BIN)/pytest -q tests/test_docs.py

# The same bytes every time; a test compares.
proto: dev
	$(BIN)/python -P -m ringserve.tools.make_proto

clean:
	rm -rf $(VENV) $(KSERVE) .typing .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info logs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find model_repository -mindepth 1 ! -name README.md -delete
