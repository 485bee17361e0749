# Two commands do: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
WORKERS ?= 2

.PHONY: demo test check serve docs figures bench install clean

demo: $(READY)
	$(BIN)/finpercep demo $(ARGS)

# Two files at a time; WORKERS=0 for one process.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

# What every commit passes.
check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

serve: $(READY)
	$(BIN)/finpercep serve $(ARGS)

# The documentation as a site, in site/index.html; a broken link is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The pictures of docs/method.md.
figures: $(READY)
	PYTHONPATH=. $(BIN)/python docs/figures/draw.py $(ARGS)

# Measures all but loss_weights, held_out_families and evidence (an hour, hours, days), and writes docs/benchmarks.md;
# ARGS=--page-only writes it from the figures that are there.
bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"finpercep needs Python 3.11 or later, got {sys.version.split()[0]}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# pyiqa brings two builds of OpenCV into one folder; the one for desktops needs libGL, which servers and new machines lack.
	$(BIN)/python -m pip uninstall --quiet --yes opencv-python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --force-reinstall --no-deps opencv-python-headless
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info
