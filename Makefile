# make setup | demo | test | serve | pacs | bench | packages | screenshots | conformance      Debian with Python 3.11 and make.
PYTHON ?= python3.11
VENV   := .venv
RUN    := $(VENV)/bin/python
export OMP_NUM_THREADS ?= 1

IMAGE   ?=
PROMPT  ?=
STUDIES ?= out/demo/studies
PACKAGES = chromium orthanc orthanc-dicomweb dicom3tools postgresql nodejs iproute2

.PHONY: setup demo test lint serve pacs bench packages screenshots conformance clean

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

# What the tests of viewers, PACS and PostgreSQL need; without them those tests are skipped.
packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES)) >/dev/null \
	  || echo "Some of these packages could not be installed: $(PACKAGES)"; \
	else echo "Needs root: apt-get install $(PACKAGES)"; fi

bench: setup
	$(RUN) main.py bench --output out/bench.md

# LLaMA-Factory, TRL and verl read the exports and train on them, each in an environment of its own (15 GB, made once).
conformance: setup
	$(RUN) -m tests.conformance.run

clean:
	rm -rf $(VENV) out
