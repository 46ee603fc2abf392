PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin

.PHONY: run test lint clean

run: $(VENV)/ready  ## the main job on the embedded data
	$(BIN)/minimodel run

test: $(VENV)/ready  ## the whole test suite
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/ready  ## formatter, linter, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build/types
	$(BIN)/pip install --quiet --no-deps --target build/types .
	cd build/types && $(BIN)/mypy --config-file ../../pyproject.toml -p minimodel

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[jax,cli,plot,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
