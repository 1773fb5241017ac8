# Two commands: `make demo` and `make test`. Each makes what it needs in .venv.
PYTHON ?= python3
VENV := .venv
WORKERS ?= 2
PIP := $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

DEMO_EXTRA := $(if $(PHOTOS),photos,demo)
DEMO_OUTPUT := demo-output$(if $(PHOTOS),-photos)
DEMO_FLAGS := --output $(DEMO_OUTPUT) $(if $(PHOTOS),--photos) $(if $(COMPARE),--compare) $(if $(SEED),--seed $(SEED))

TINY := jrm_plugin/resources/jrm-tiny
TINY_FILES := config.json model.safetensors tokenizer.json tokenizer_config.json chat_template.jinja \
              preprocessor_config.json jrm_processor.json summary.json

.PHONY: demo test lint jrm-tiny clean

demo: $(VENV)/.installed-$(DEMO_EXTRA)
	$(VENV)/bin/jrm demo $(DEMO_FLAGS)

test: $(VENV)/.installed-dev lint
	$(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadgroup

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Makes the built-in model anew: the demo with more steps; takes about 25 minutes on 2 cores.
jrm-tiny: $(VENV)/.installed-demo
	$(VENV)/bin/jrm demo --output demo-output-tiny --scale 2.5
	cp demo-output-tiny/summary.json demo-output-tiny/model
	mkdir -p $(TINY) && cp $(addprefix demo-output-tiny/model/,$(TINY_FILES)) $(TINY)

# torch first and exactly: a looser request would fetch a CUDA build of several gigabytes.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing jrm-plugin[$*] into $(VENV); this takes two minutes."
	$(PIP) $(TORCH)
	$(PIP) --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) demo-output demo-output-photos demo-output-tiny build dist *.egg-info
