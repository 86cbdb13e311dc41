#!/usr/bin/env bash
# Test the lowest versions that pyproject.toml allows, with the oldest Python, and the newest ones with each Python at
# hand. Needs uv, and 6 GB of disk space for each environment in .versions. make test-versions calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
export RAY_ADDRESS=local WANDB_MODE=disabled OMP_NUM_THREADS=1
PYTHONS=${PYTHONS:-3.11 3.12 3.13 3.14}
TOOLS=(pytest pytest-timeout pytest-xdist hypothesis psutil pydicom-data==1.0.0 highdicom)
# Network, weights, codecs, storage, one workflow with Ray; not the tests that need other tools.
TESTS=(tests/test_end_to_end.py tests/model tests/imaging tests/storage tests/inference/test_segmenter.py
    tests/pipelines/test_export_model.py)

check() { # check PYTHON RESOLUTION
    local folder=.versions/$1-$2 python
    python=$folder/bin/python
    uv venv --quiet --clear --python "$1" "$folder"
    uv pip install --quiet --python "$python" --only-binary :all: --resolution "$2" -r pyproject.toml
    uv pip install --quiet --python "$python" "${TOOLS[@]}"
    # Newer packages warn of what the tested ones do not.
    PYTHONPATH=$PWD "$python" -m pytest -q -p no:cacheprovider -m "not slow" -o filterwarnings=default "${TESTS[@]}"
}

for python in $PYTHONS; do
    if ! uv python find --quiet --no-python-downloads "$python" >/dev/null 2>&1; then
        echo "Python $python is not on this machine: not tested"
        continue
    fi
    [ "$python" != "${PYTHONS%% *}" ] || check "$python" lowest-direct
    check "$python" highest
done
