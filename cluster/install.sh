#!/usr/bin/env bash
# Installs the packages of requirements.lock into the environment whose python comes first on PATH.
#
#   cluster/install.sh gpu         as they are locked: torch's wheels bring CUDA 13, the host its driver (580 or newer)
#   cluster/install.sh cpu         without CUDA, which is two thirds of it all
#   cluster/install.sh cpu-lock    print the part of the lock that cpu installs as it is locked
#
# For cpu, torch and torchvision come in the locked versions from PyTorch's own index (or TORCH_CPU_INDEX, a mirror of
# it). They are other files than PyPI's, and the lock has no hashes for them: of these two nothing but the name, the
# version and the connection is checked. All others are, by their hashes.
set -euo pipefail

LOCK=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)/requirements.lock

# A package is a line that begins with its name, and the lines of its hashes after it.
cpu_lock() {
    awk '/^[^ ]/ { name = $1; sub(/==.*/, "", name); cuda = name ~ /^(torch|torchvision|triton|(nvidia|cuda)-.*)$/ } !cuda' "$LOCK"
}

# --no-deps: the lock is complete, but for opencv-python, which one package asks for and which must not lie beside the
# headless wheel.
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
    echo "cluster/install.sh: no device '${1:-}': pass gpu or cpu" >&2
    exit 2
    ;;
esac
