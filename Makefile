# make setup | demo | test | serve | bench | conformance      Debian with Python 3.11 and make; everything else comes from PyPI.
PYTHON ?= python3.11
VENV   := .venv
RUN    := $(VENV)/bin/python
export OMP_NUM_THREADS ?= 1

IMAGE   ?=
PROMPT  ?=
STUDIES ?= out/demo/studies

.PHONY: setup demo test lint serve bench conformance clean

setup: $(VENV)/.ready

# torch first: sam2 is built against it, and an isolated build would fetch a second copy.
$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet setuptools==80.9.0 wheel numpy==1.26.4
	$(VENV)/bin/pip install --quiet $$(grep -E '^torch(vision)?==' requirements.txt | cut -d' ' -f1)
	SAM2_BUILD_CUDA=0 $(VENV)/bin/pip install --quiet --no-build-isolation -r requirements.txt
	touch $@

demo: setup
	$(RUN) main.py demo $(if $(IMAGE),--image "$(IMAGE)") $(if $(PROMPT),--prompt "$(PROMPT)")

test: setup lint
	$(RUN) -m pytest

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

serve: setup
	$(RUN) main.py serve --studies "$(STUDIES)"

bench: setup
	$(RUN) main.py bench --output out/bench.md

# LLaMA-Factory, TRL and verl read the exports and train on them, each in an environment of its own (15 GB, made once).
conformance: setup
	$(RUN) -m tests.conformance.run

clean:
	rm -rf $(VENV) out
