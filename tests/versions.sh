#!/usr/bin/env bash
# Test the lowest versions that pyproject.toml allows, with the oldest Python, and the newest ones with each installed
# Python. Needs uv, and 6 GB of disk space for each environment in .versions. make test-versions calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
export RAY_ADDRESS=local WANDB_MODE=disabled OMP_NUM_THREADS=1
PYTHONS=${PYTHONS:-3.11 3.12 3.13 3.14}
# highdicom 0.28 has no wheels for Python 3.14; without a limit, uv installs version 0.13 there.
TOOLS=(pytest pytest-timeout pytest-xdist hypothesis psutil pydicom-data==1.0.0 "highdicom>=0.28; python_version<'3.14'")
# Network, weights, codecs, storage, one workflow with Ray; not the tests that need other tools.
TESTS=${TESTS:-tests/imaging tests/storage tests/model tests/inference/test_segmenter.py
    tests/pipelines/test_export_model.py tests/test_end_to_end.py}
failed=()

check() { # check PYTHON RESOLUTION; && because set -e does not act in a function whose status is tested
    local folder=.versions/$1-$2 python
    python=$folder/bin/python
    uv venv --quiet --clear --python "$1" "$folder" &&
        uv pip install --quiet --python "$python" --only-binary :all: --resolution "$2" -r pyproject.toml &&
        uv pip freeze --quiet --python "$python" >"$folder/tested.txt" &&
        # The tools must not replace the versions under test.
        uv pip install --quiet --python "$python" --constraint "$folder/tested.txt" "${TOOLS[@]}" &&
        # Newer packages warn of what the tested ones do not. TESTS is a list of words.
        # shellcheck disable=SC2086
        PYTHONPATH=$PWD "$python" -m pytest -q -p no:cacheprovider -m "not slow" -o filterwarnings=default $TESTS
}

for python in $PYTHONS; do
    if ! uv python find --quiet --no-python-downloads "$python" >/dev/null 2>&1; then
        echo "Python $python is not installed: not tested"
        continue
    fi
    for resolution in $([ "$python" != "${PYTHONS%% *}" ] || echo lowest-direct) highest; do
        echo "Python $python, $resolution"
        check "$python" "$resolution" || failed+=("$python $resolution")
    done
done
[ ${#failed[@]} = 0 ] || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }
