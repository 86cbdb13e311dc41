#!/usr/bin/env bash
# Install the packages of requirements.lock into the environment of the first python on PATH.
#
#   cluster/install.sh gpu         as locked: torch's wheels include CUDA 13; the host needs the driver (580 or newer)
#   cluster/install.sh cpu         without CUDA, which is two thirds of the total size
#   cluster/install.sh cpu-lock    print the locked packages that cpu installs unchanged
#
# For cpu, torch and torchvision come from PyTorch's index (or from TORCH_CPU_INDEX, a mirror), in the locked versions.
# These files differ from those on PyPI, and the lock has no hashes for them: only name, version and the TLS connection
# are checked. All other packages are checked by their hashes.
set -euo pipefail

LOCK=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)/requirements.lock

# An entry of the lock is a line that starts with the package name, followed by the lines with its hashes.
cpu_lock() {
    awk '/^[^ ]/ { name = $1; sub(/==.*/, "", name); cuda = name ~ /^(torch|torchvision|triton|(nvidia|cuda)-.*)$/ } !cuda' "$LOCK"
}

# --no-deps: the lock is complete.
install() { python -m pip install --no-cache-dir --no-deps "$@"; }

case ${1:-} in
gpu) install --require-hashes -r "$LOCK" ;;
cpu)
    install --require-hashes -r <(cpu_lock)
    mapfile -t torch < <(sed -nE 's/^((torch|torchvision)==[^ ;]+).*/\1/p' "$LOCK")
    install --index-url "${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}" "${torch[@]}"
    ;;
cpu-lock) cpu_lock ;;
*)
    echo "cluster/install.sh: unknown device '${1:-}': pass gpu or cpu" >&2
    exit 2
    ;;
esac
