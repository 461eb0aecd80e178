# make demo: train, adapt and evaluate a small model on synthetic data.   make demo-anomaly: find unseen objects in such data.
# make test: run both groups of the test suite.
# make quick: run the first of them.   make coverage: the same, and which lines it ran.   make lint: ruff and mypy.
# make faults: kill runs, damage files, and count what comes of it.
# Each makes its environment in .venv first. Other choices: make demo PYTHON=python3.12 TORCH=torch MMCV=mmcv==2.1.0
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
MMCV ?= mmcv-lite==2.1.0
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
# a process on each core, which computes with one thread (tests/conftest.py), and a file's tests in one of them
PYTEST = $(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist loadfile -p no:randomly

.PHONY: demo demo-anomaly test quick coverage faults environments env lint clean

demo: env
	$(VENV)/bin/python tools/demo.py

demo-anomaly: env
	$(VENV)/bin/python tools/demo_anomaly.py

test: env
	$(PYTEST) -m 'slow or not slow'

quick: env
	$(PYTEST)

coverage: env
	$(PYTEST) --cov=mmseg_eomt --cov-report=term

faults: env
	$(VENV)/bin/python tests/faults

environments:
	$(PYTHON) tests/environments.py $(NAMES)

lint: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

env: $(VENV)/ready

$(VENV)/ready: setup.py pyproject.toml
	@echo "Making the environment in $(VENV): $(TORCH), $(MMCV), the toolbox, PEFT and the test tools"
	@$(PYTHON) -m venv $(VENV) || { echo "No environment: on Debian run 'apt install python3-venv', elsewhere give PYTHON=…" >&2; exit 1; }
	$(PIP) install "$(TORCH)"
	$(PIP) install "$(MMCV)" --editable ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) .venv-lite .venv-full .venv-forks .venv-oldest data/street_scenes work_dirs/eomt_demo* work_dirs/eomt_lora_demo* work_dirs/demo.* \
		data/street_anomalies work_dirs/eomt_anomaly_demo* work_dirs/eomt_lora_rba_demo* work_dirs/demo_anomaly.*
