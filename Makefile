# `make demo` runs the main job, `make test` passes the tests; both set up what they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
endif

.PHONY: demo test lint bench accuracy clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[plots,tables,run,server]'
	touch $@

$(VENV)/test.stamp: pyproject.toml $(VENV)/demo.stamp
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[plots,tables,run,server,torch,dev]'
	touch $@

demo: $(VENV)/demo.stamp
	mkdir -p demo
	$(BIN)/taygeta compare openai/gpt-oss-120b --chips maia-100:4,tpu-v5p:4,h100:4,b200:4 --isl 1024 --osl 1024 --concurrency 64 --html demo/report.html
	@echo "To talk to a chip that does not exist: $(BIN)/taygeta serve openai/gpt-oss-120b --chip maia-100:8"

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/pyright

test: lint
	$(BIN)/python -m pytest

bench: $(VENV)/demo.stamp
	$(BIN)/python tools/bench.py

# Scores every prediction on a directory of measured tables and rewrites docs/accuracy.md.
SILICON ?= ../shared/silicon
accuracy: $(VENV)/demo.stamp
	$(BIN)/taygeta validate $(SILICON) --markdown docs/accuracy.md

clean:
	rm -rf $(VENV) demo build dist
