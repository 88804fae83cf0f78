# make help says what there is. Every target does its own set-up and is quick when nothing changed.
#   PYTHON=python3.13    the Python that .venv is made from (default: the first python3 in PATH)
#   ARGS='-k layer -x'   passed on to pytest, the demo or the benchmark

PYTHON ?= python3
ARGS ?=
export PYTHON

PY := .venv/bin/python3
INSTALLED := .venv/.installed
# Directories too, so that a removed file counts as a change.
SOURCES := $(shell find src bin -name __pycache__ -prune -o -name '*.egg-info' -prune -o -name knarr-init -prune -o -print) \
           setup.py pyproject.toml MANIFEST.in README.md LICENSE

.DEFAULT_GOAL := build
.PHONY: build demo test test-vm lint bench bench-images bench-isolation conformance conformance-registry fuzz clean help arm64

build: ## install knarr into .venv (.venv/bin/knarr, .venv/bin/knarr-runtime)
	@scripts/prepare venv
	@$(MAKE) --silent --no-print-directory $(INSTALLED)

$(INSTALLED): $(SOURCES)
	@scripts/prepare system build
	@echo "installing knarr into .venv"
	@rm -rf build src/knarr.egg-info
	@$(PY) -m pip --disable-pip-version-check --quiet install --no-deps --no-build-isolation --force-reinstall .
	@rm -rf build src/knarr.egg-info
	@touch $@

demo: build ## show an image become a running container, step by step
	@scripts/prepare system demo
	@PATH="$(CURDIR)/.venv/bin:$$PATH" scripts/demo $(ARGS)

test: build ## run all tests against the installed package; prints every skip with its reason
	@scripts/prepare system test
	KNARR_TEST_INSTALLED=1 $(PY) -m pytest -n auto --dist loadfile $(ARGS)

test-vm: build ## run the tests that need systemd, cgroup v2 or CRIU in a virtual machine (QEMU, no KVM needed)
	@scripts/prepare system vm
	@$(PY) tests/vm/vm.py $(ARGS)

lint: build ## ruff, mypy, pyright
	@scripts/lint

bench-runtime: build ## measure knarr-runtime beside runc and crun; writes build/bench-runtime.svg
	@scripts/prepare system test
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) bench/runtime.py $(ARGS)

bench: bench-runtime ## the same, and the library beside crun and bubblewrap
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) bench/library.py $(ARGS)

bench-isolation: build ## measure a kernel of its own beside runsc and runc; as root; writes build/bench-isolation.svg
	@scripts/prepare system test bench
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) bench/isolation.py $(ARGS)

bench-images: build ## the image jobs that have goals, beside umoci, skopeo, podman, docker, ctr; as root; writes build/bench-images.svg
	@scripts/prepare system test
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) bench/imagegoals.py $(ARGS)

conformance: build ## build and run the official conformance suite (downloads it; needs root)
	@scripts/prepare system test
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) tests/conformance/official.py $(ARGS)

conformance-registry: build ## build and run the official suite for registries (downloads it)
	@scripts/prepare system test
	@$(PY) tests/conformance/distribution.py $(ARGS)

arm64: build ## cross-compile knarr-init for arm64 into build/aarch64
	@scripts/prepare system ci
	KNARR_TARGET=aarch64 $(PY) setup.py --quiet build_init --output build/aarch64/knarr-init

fuzz: build ## fuzz the parsers, a minute each (guided by atheris, where PyPI has it for this Python)
	@test -d .cache/fuzz/atheris || $(PY) -m pip --disable-pip-version-check --quiet install --no-deps --target .cache/fuzz/atheris atheris==3.0.0 || \
		echo "no atheris for this Python: inputs are seeds changed at random"
	@PYTHONPATH=.cache/fuzz/atheris $(PY) tests/fuzz/fuzz.py $(ARGS)

clean: ## remove everything that make made
	rm -rf .venv .cache build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis src/knarr/init/knarr-init
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'
