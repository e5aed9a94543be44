# Two commands on a fresh machine with python3: `make demo` and `make test`. Each sets up what it needs in .venv.
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
READY := $(VENV)/.ready

PEERS := .venv-peers

.PHONY: setup demo test test-slow test-browser test-peers lint bench constraints clean

setup: $(READY)

# uv from PyPI, in a small venv of its own, where the machine has none. Debian's bare python3 has no venv, but may have pip.
.uv/bin/uv:
	@python3 -m venv .uv 2>/dev/null && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv \
	  || python3 -m pip install --quiet --disable-pip-version-check --target .uv uv \
	  || { rm -rf .uv; echo "error: python3 has neither venv nor pip"; echo "hint: apt install python3-venv"; exit 1; }

$(READY): pyproject.toml constraints.txt | $(filter .uv/bin/uv,$(UV))
	$(UV) venv --quiet --allow-existing --python '>=3.11' $(VENV)
	$(UV) pip install --quiet --python $(VENV) -c constraints.txt -e . --group dev --group builtin
	touch $@

demo: $(READY)
	$(BIN)/mlx-lora train configs/stanley_cup_modern.yaml --set output_dir=adapters/demo --overwrite
	$(BIN)/mlx-lora eval adapters/demo --base --max-tokens 24 --fail-under 0.9
	@echo
	@echo "Talk to it:  $(BIN)/mlx-lora chat adapters/demo"

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-slow: $(READY)
	$(BIN)/python -m pytest -m 'slow and not peers'

# The report in a real browser: apt-get install chromium first.
test-browser: $(READY)
	$(BIN)/python -m pytest -m browser

# Exports in the programs that they are for, PEFT on torch (CPU) and llama.cpp, which is built here: minutes, once.
test-peers: $(PEERS)/.ready
	$(PEERS)/bin/python -m pytest -m peers

$(PEERS)/.ready: pyproject.toml constraints.txt | $(filter .uv/bin/uv,$(UV))
	$(UV) venv --quiet --allow-existing --seed --python '>=3.11' $(PEERS)
	$(UV) pip install --quiet --python $(PEERS) -c constraints.txt -e . --group dev --group builtin
	$(PEERS)/bin/python -m pip install --quiet -c constraints.txt torch==2.13.0 peft==0.21.2
	CMAKE_ARGS="-DGGML_NATIVE=OFF" $(PEERS)/bin/python -m pip install --quiet --no-binary llama-cpp-python llama-cpp-python==0.3.36
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/train.py --work chat30

# Pin what is installed; without the registry's address. Checked for a Mac too.
constraints: $(READY)
	$(UV) pip compile --quiet --universal --no-emit-index-url --no-annotate --no-header \
	  pyproject.toml --group dev --group builtin -o constraints.txt
	MACOSX_DEPLOYMENT_TARGET=14.0 $(UV) pip compile --quiet --python-platform aarch64-apple-darwin --no-emit-index-url --no-header \
	  -c constraints.txt pyproject.toml > /dev/null

clean:
	rm -rf $(VENV) $(PEERS) .uv
