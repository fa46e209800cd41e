# make demo: install, and explain a batch of the embedded data.  make test: install, and run every check and test.
PYTHON ?= python3
VENV := .venv
COMPAT := .venv-compat
BIN := $(VENV)/bin

.PHONY: demo test docs lint test-compat test-browser screenshots clean

$(VENV)/.installed: pyproject.toml setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# torch and torchvision in one command: builds from different places do not fit each other
	$(BIN)/python -m pip install --quiet --editable ".[all]" --group test --group oracle --group lint
	touch $@

# The oldest supported Captum, which needs numpy 1 and has Insights, and the last transformers of the 4 series.
$(COMPAT)/.installed: pyproject.toml setup.cfg
	$(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python -m pip install --quiet --upgrade pip
	$(COMPAT)/bin/python -m pip install --quiet --editable ".[all,insights]" --group test --group oracle "transformers<5"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/captum-iba demo --output iba-demo

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --nbmake --nbmake-timeout=300 tutorials

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build

# the room that knows neither Captum nor transformers is tested once; its doctests run here too
test-compat: $(COMPAT)/.installed
	$(COMPAT)/bin/python -m pytest -n 2 --ignore=tests/information

# Debian's Chromium: playwright's own download is not needed
CHROMIUM := /usr/bin/chromium
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

$(CHROMIUM):
	$(AS_ROOT) apt-get update --quiet
	$(AS_ROOT) apt-get install --yes --quiet --no-install-recommends chromium

%/.browser: %/.installed
	$*/bin/python -m pip install --quiet --group browser
	touch $@

test-browser: $(VENV)/.browser $(COMPAT)/.browser | $(CHROMIUM)
	$(BIN)/python -m pytest tests/browser
	$(COMPAT)/bin/python -m pytest tests/browser/test_insights.py

# what the documentation shows of both pages
screenshots: $(COMPAT)/.browser | $(CHROMIUM)
	$(COMPAT)/bin/python -m pytest tests/browser/test_insights.py tests/browser/test_serve.py --screenshots docs

clean:
	rm -rf $(VENV) $(COMPAT) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
