# make demo              segment a real X-ray; then prepare, train, infer and report on phantoms. With DATA=folder: the
#                        same on your X-rays and masks; X-rays without masks are segmented
# make test              run the checks and all tests that are not slow; make check: only format, lint, types, imports
# make test-slow         run the slow tests: several Ray nodes, buckets, submitted jobs, full disks, killed jobs, fuzz
# make test-versions     test the lowest and the newest versions of all dependencies; needs uv, and hours on a small machine
# make clean             delete the files of demo and test; make distclean also deletes the installation

PYTHON ?= python3
DATA ?=
WORK := demo/$(if $(DATA),$(notdir $(abspath $(DATA))),phantoms)
ARCHIVE := $(if $(DATA),$(DATA),$(WORK)/data/phantoms)
RUN := .venv/bin/python
# A chest X-ray of a patient, in DICOM, from the package pydicom-data.
FIRST_XRAY := from pydicom.data import get_testdata_file; print(get_testdata_file("RG1_UNCR.dcm", download=False))
COUNT_MASKS := import sys; from lungseg import storage; from lungseg.ingest import sources; \
	print(sum(bool(record.mask_classes) for record in sources.discover(storage.resolve(sys.argv[1]))))
# Start a separate Ray, even if this machine belongs to another cluster.
export RAY_ADDRESS := local

.PHONY: demo demo-with-masks test fast-tests test-slow test-versions check clean distclean

# Every result except a count of 0 goes to the preparation, which reports errors.
demo: .venv/installed
	@if test -z "$(DATA)"; then $(RUN) -m lungseg segment "$$($(RUN) -c '$(FIRST_XRAY)')" --out demo/first-xray; fi
	@if test -n "$(DATA)" && test "$$($(RUN) -c '$(COUNT_MASKS)' "$(DATA)" 2>/dev/null)" = 0; \
	then $(RUN) -m lungseg segment "$(DATA)" --out "$(WORK)"; else $(MAKE) --no-print-directory demo-with-masks; fi
	@echo "to use the command lungseg: . .venv/bin/activate"
	@for picture in demo/first-xray/overlays/*; do \
		if test -z "$(DATA)" && test -f "$$picture"; then echo "the segmented X-ray: $$picture"; fi; done

demo-with-masks:
	$(RUN) -m lungseg prepare demo $(if $(DATA),--source "$(DATA)") --out "$(WORK)/data"
	$(RUN) -m lungseg train demo --data "$(WORK)/data" --out "$(WORK)/runs"
	$(RUN) -m lungseg infer demo --archive "$(ARCHIVE)" --checkpoint "$(WORK)/runs/demo" --out "$(WORK)/predictions"
	$(RUN) -m lungseg report demo --study "$(WORK)/runs/demo" --predictions "$(WORK)/predictions" --out "$(WORK)/report"

# The checks run beside the tests: mypy needs one core for a minute.
test: .venv/installed .venv/bin/dciodvfy
	@$(MAKE) --no-print-directory -j2 check fast-tests

fast-tests: .venv/installed
	$(RUN) -m pytest -m "not slow" --numprocesses 2

test-slow: .venv/installed
	$(RUN) -m pytest -m slow --numprocesses 2

test-versions:
	tests/versions.sh

# dciodvfy checks DICOM files. Without apt-get, the tests that use it are skipped.
.venv/bin/dciodvfy: | .venv/installed
	@folder=$$(mktemp -d) && cd "$$folder" && { { timeout 60 apt-get download dicom3tools && \
		dpkg --extract dicom3tools_*.deb . && install usr/bin/dciodvfy "$(CURDIR)/$@"; } >/dev/null 2>&1 || \
		echo "dciodvfy could not be fetched: the test that uses it is skipped"; }; rm -rf "$$folder"

check: .venv/installed
	$(RUN) -m ruff format --check
	$(RUN) -m ruff check
	$(RUN) -m mypy
	.venv/bin/lint-imports

# The lock lists every package with its hashes, so pip resolves nothing.
.venv/installed: requirements.lock pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "$(PYTHON) is not Python 3.11 to 3.13: pass PYTHON=python3.11" >&2; exit 2; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --no-deps --require-hashes -r requirements.lock
# compat: otherwise Python, started in the parent folder, imports the clone `lungseg` as an empty package.
	$(RUN) -m pip install --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	touch $@

clean:
	rm -rf demo build lungseg.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

distclean: clean
	rm -rf .venv .versions
