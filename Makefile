# `make run` starts a store; `make test` runs every check. Both set up what they need in ./.venv.
.PHONY: run cluster test lint bench wheel setup fuzz clean help os os-run os-image os-config os-test os-full
ARGS ?=
PY := .venv/bin/python

help:
	@echo 'make run [ARGS="--port 9000"]   start a store on 127.0.0.1:8080, data in ./o3data'
	@echo 'make cluster                     start three nodes as one store, data in ./o3cluster'
	@echo 'make test                       lint, types and all test suites'
	@echo 'make lint                       ruff and mypy only'
	@echo 'make bench [ARGS="requests"]      measure, with references: about 35 minutes, or the parts named'
	@echo 'make wheel                      build a wheel into dist/'
	@echo 'make fuzz [SECONDS_EACH=60]     run every fuzzer'
	@echo 'make os, os-run, os-test        the kernel of our own: build, boot, test (os/README.md)'

run:
	@tools/setup.sh run
	@exec .venv/bin/o3storage serve $(ARGS)

cluster:
	@tools/setup.sh run
	@exec .venv/bin/python tools/local_cluster.py $(ARGS)

setup:
	@tools/setup.sh test

lint: setup
	$(PY) -m ruff check src tests bench tools
	$(PY) -m ruff format --check src tests bench tools
	$(PY) -m mypy

test: setup
	$(PY) tools/run_tests.py $(ARGS)

fuzz: setup
	$(PY) tools/run_tests.py --only fuzz --seconds-each $(or $(SECONDS_EACH),60)

bench: setup
	$(PY) -m bench $(ARGS)

wheel: setup
	$(PY) tools/build_wheel.py

os os-run os-image os-config os-test os-full:
	$(MAKE) -C os $@

clean:
	rm -rf .venv native/target dist build
