# Everything sets itself up: a fresh machine needs python3 (3.11 or newer) and make.
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
VLLM := .vllm
READERS := .readers
DOCS := $(VENV)/.docs-ready

# processes that tests start read what others have compiled, also where the shell forbids it to be kept
export PYTHONDONTWRITEBYTECODE :=

.PHONY: report test test-slow test-vllm test-readers docs lint bench mutants clean

report: $(READY)
	$(VENV)/bin/regraft report --out report

test: $(READY)
	$(PYTHON) -m pytest -n 2 -q

test-slow: $(READY)
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[browser]"
	$(PYTHON) -m pytest -n 2 -q -m slow
	$(PYTHON) tests/machines.py

# vLLM wants an older transformers than ours, so it has an environment of its own; three packages that it
# brings along do not import beside PyTorch for the CPU
test-vllm: $(READY) $(VLLM)/.ready
	$(PYTHON) -m pytest -q -m vllm tests/test_vllm.py

# neighbours that read our files and install beside an older transformers alone
test-readers: $(READY) $(READERS)/.ready
	$(PYTHON) -m pytest -q -m readers tests/test_neighbour_readers.py

# every snippet and command of the pages runs, then tutorials and pages that are made from code, then the site
docs: $(DOCS)
	$(PYTHON) -m pytest -n 2 -q -m "slow or not slow" -k "not a_tutorial_runs" tests/test_docs.py tests/test_readme.py tests/test_docs_site.py
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m tools.docs_site.build

lint: $(READY)
	$(VENV)/bin/ruff check src tests benchmarks tools docs/tutorials
	$(VENV)/bin/ruff format --check src tests benchmarks tools docs/tutorials
	$(VENV)/bin/pyright

bench: $(READY)
	$(PYTHON) -m benchmarks.peers.run

mutants: $(READY)
	$(PYTHON) tools/mutants.py

$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[test]"
	touch $(READY)

$(DOCS): $(READY)
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[docs]"
	touch $(DOCS)

$(VLLM)/.ready: pyproject.toml
	test -d $(VLLM) || python3.11 -m venv $(VLLM)
	$(VLLM)/bin/pip install -q -e ".[vllm]"
	$(VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $(VLLM)/.ready

$(READERS)/.ready:
	test -d $(READERS) || python3.11 -m venv $(READERS)
	$(READERS)/bin/pip install -q circuit-tracer==0.5.0 sae-lens==6.54.12
	touch $(READERS)/.ready

clean:
	rm -rf report build site
