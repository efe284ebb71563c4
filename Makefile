# make demo    train a small UNETR on synthetic abdomens and test it
# make test    lint, and all tests; mypy is one of them (tests/test_types.py)
# make bench   time everything beside MONAI and write the table in docs/performance.md; with WEIGHTS=CHECKPOINT it also
#              compares the masks
# make pictures  take the pictures of the demo's report and view that the pages show; needs Chromium
# Each target creates a virtual environment in .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test bench pictures clean

demo: $(VENV)/installed
	$(BIN)/python -m utils.phantom --output_dir $(DEMO)/phantoms --training 24 --validation 3 --test 6 \
		--space_x 3.5 --space_y 3.5 --space_z 5
	$(BIN)/python main.py @recipes/demo.args --data_dir $(DEMO)/phantoms --logdir demo --overwrite --save_checkpoint
	$(BIN)/python test.py --data_dir $(DEMO)/phantoms --split test \
		--pretrained_dir runs/demo --pretrained_model_name model.pt
	@echo "look at runs/demo/progress.png, runs/demo/validation.png and runs/demo/scores/report.html"

test: export PYTHONDONTWRITEBYTECODE :=  # or each program that a test starts compiles all modules again
test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist worksteal

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks $(if $(WEIGHTS),--weights $(WEIGHTS))

pictures: demo
	$(BIN)/python -m docs.pictures runs/demo/scores

clean:
	rm -rf $(VENV) $(DEMO) runs/demo

$(VENV)/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else \
		f"error: python {sys.version.split()[0]} is not between 3.11 and 3.13; give another with make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@
