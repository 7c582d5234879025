# make setup | demo | test | serve | pacs | bench | screenshots      Debian, Python 3.11, make; all else comes from PyPI.
PYTHON ?= python3.11
VENV   := .venv
RUN    := $(VENV)/bin/python
export OMP_NUM_THREADS ?= 1

IMAGE   ?=
PROMPT  ?=
STUDIES ?= out/demo/studies

.PHONY: setup demo test lint serve pacs screenshots bench clean

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

# Orthanc with a phantom, and the server on it; needs Debian's packages orthanc and orthanc-dicomweb.
pacs: setup
	$(RUN) main.py pacs

# The README's pictures, from the demo's phantom; needs root, orthanc, orthanc-dicomweb, iproute2 and chromium.
screenshots: setup
	$(RUN) -m tests.e2e.screenshots

bench: setup
	$(RUN) main.py bench --output out/bench.md

clean:
	rm -rf $(VENV) out
