# demo . test . bench . gpu . lint: each makes its own .venv, builds what it needs, and shows what it does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
native := $(wildcard csrc/*/*) CMakeLists.txt setup.py pyproject.toml constraints.txt

.PHONY: demo test bench gpu gpu-build gpu-test gpu-bench lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.built
	$(BIN)/qkernels demo --out out

test: $(VENV)/.built
	$(BIN)/python -m pytest -q --durations=10 -n auto --maxprocesses 8 --dist worksteal

bench: $(VENV)/.built
	$(BIN)/python -m bench quant --device cpu --quick --json out/bench.json

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# On a machine with a GPU, a CUDA build of torch, Triton and nvcc, into the Python that is there: build, every test that
# runs on the GPU, every bench; each step goes on after a failure of the one before it. OUT/<gpu>*.jsonl are what belongs
# in bench/results/.
OUT ?= out/gpu
WORKERS ?= $(shell $(PYTHON) -c 'import xdist' 2>/dev/null && printf '%s' '-n auto --maxprocesses 8 --dist worksteal')
gpu: gpu-build
	$(MAKE) gpu-test; tests=$$?; $(MAKE) gpu-bench && exit $$tests

gpu-build:
	mkdir -p $(OUT)
	$(PYTHON) setup.py build_ext --inplace > $(OUT)/build.txt 2>&1 || { tail -n 30 $(OUT)/build.txt; exit 1; }
	$(PYTHON) -m qkernels | tee -a $(OUT)/build.txt
	$(PYTHON) -c 'from qkernels import backends; assert "cuda" in backends.backends_of("lsq"), "built without CUDA kernels"'

gpu-test:
	mkdir -p $(OUT); : > $(OUT)/tests.txt; status=0; \
	  for files in tests/test_gpu.py "tests/test_matmul.py tests/test_pack.py" tests/test_ops.py; do \
	    $(PYTHON) -m pytest -v --tb=short -p no:cacheprovider $(WORKERS) $$files >> $(OUT)/tests.txt 2>&1 || status=1; \
	    tail -n 1 $(OUT)/tests.txt; \
	  done; \
	  grep -E "^(FAILED|ERROR) " $(OUT)/tests.txt | head -n 60; exit $$status

gpu-bench:
	mkdir -p $(OUT); status=0; \
	  gpu="$(OUT)/$$($(PYTHON) -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-").lower())')"; \
	  matmul="$(PYTHON) -m bench matmul --device cuda --json $$gpu-matmul"; \
	  $(PYTHON) -m bench quant --device cuda --json "$$gpu.jsonl" || status=1; \
	  QKERNELS_BACKEND=cuda $$matmul-cuda.jsonl || status=1; \
	  QKERNELS_BACKEND=cuda QKERNELS_PDL=1 $$matmul-pdl.jsonl --bits 4 2 --rows 1 16 || status=1; \
	  QKERNELS_BACKEND=cuda QKERNELS_WGMMA=1 $$matmul-wgmma.jsonl --rows 128 256 512 || status=1; \
	  QKERNELS_BACKEND=triton $$matmul-triton.jsonl --bits 4 2 --rows 1 16 128 || status=1; \
	  exit $$status

$(VENV)/.ready: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qkernels needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@for cxx in "$$CXX" c++ g++ clang++; do command -v "$$cxx" >/dev/null 2>&1 && exit 0; done; echo "no C++ compiler (c++, g++ or clang++) was found: install one, e.g. apt-get install g++"; exit 1
	@echo "[1/3] $(VENV): a virtual environment"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/3] $(VENV): installing pinned packages (torch is the large one)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch \
	  safetensors setuptools cmake ninja pybind11 pytest pytest-benchmark pytest-xdist hypothesis ruff numpy typer rich matplotlib jinja2 scikit-learn \
	  $$($(PYTHON) -c 'import sys; print("triton" if sys.platform == "linux" else "")') \
	  || { echo "pip could not install the packages of constraints.txt: is a package index reachable from here?"; exit 1; }
	@touch $@

$(VENV)/.built: $(VENV)/.ready $(native)
	@echo "[3/3] building the kernels (three minutes on two cores)"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e . \
	  || { echo "the build failed; see the messages above"; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) build out qkernels/*.so
