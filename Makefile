# make reproduce [PROFILE=smoke|laptop|gpu|paper]   replay the paper
# make test [SLOW=1]                                the tests; with SLOW=1 all that CI checks: kills, Ray, a browser
# make lab                                          JupyterLab on the notebooks
# make docs                                         the site in outputs/site, built offline
# make lock                                         resolve requirements.lock again from pyproject.toml
# make reference [PROFILE=…]                        keep a run's results, without its weights, in outputs/reference/
# make readme                                       README.md from nbs/index.ipynb
PYTHON ?= python3
PROFILE ?= laptop
BIN := .venv/bin
.PHONY: reproduce test programs lab docs lock reference readme

reproduce: .venv/ready
	$(BIN)/smoltraces reproduce --profile $(PROFILE)

test: .venv/ready programs
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder $(if $(SLOW),,-m "not slow") tests

PROGRAMS := bwrap:bubblewrap $(if $(SLOW),chromium:chromium)
programs: # that the tests run: installed where we may, as in a container of CI
	-@for each in $(PROGRAMS); do command -v "$${each%:*}" >/dev/null && continue; \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq "$${each#*:}" >/dev/null; \
		else echo "No $${each%:*} here: its tests are skipped. Install $${each#*:} to run them."; fi; done

lab: .venv/ready
	JUPYTER_CONFIG_PATH="$(CURDIR)/nbs/.jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" \
		$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" nbs/index.ipynb

docs: .venv/ready
	$(BIN)/python nbs/docs/build.py

lock: .venv/ready
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate \
		--upgrade --output-file requirements.lock pyproject.toml

reference:
	rm -rf outputs/reference/$(PROFILE)
	mkdir -p outputs/reference/$(PROFILE)/data outputs/reference/$(PROFILE)/runs
	cd outputs/$(PROFILE) && cp data/manifest.json ../reference/$(PROFILE)/data && cp runs/[1-5]*.json \
		../reference/$(PROFILE)/runs && cp -r manifest.json problems tables figures notebooks predictions style \
		results.parquet comparisons.parquet claims.parquet report.html ../reference/$(PROFILE)

readme: .venv/ready
	$(BIN)/jupyter nbconvert --log-level ERROR --to markdown --no-input --output-dir . --output README nbs/index.ipynb
	$(BIN)/python -c 'from pathlib import Path; p = Path("README.md"); p.write_text(p.read_text().replace("](../", "]("))'

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "SmolTraces needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --editable .
	touch $@
