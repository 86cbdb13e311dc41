"""Static checks of the Dockerfile, and the packages that install.sh installs."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ROOT / "cluster" / "install.sh"
LOCK = (ROOT / "requirements.lock").read_text()
CUDA = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")

Steps = list[tuple[str, str]]


def _steps(text: str) -> Steps:
    """Return the instructions of a Dockerfile, with continued lines joined and comments removed."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = [line.strip() for line in code.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0].upper(), line.split(maxsplit=1)[1]) for line in lines]


STEPS = _steps((ROOT / "cluster" / "Dockerfile").read_text())


def _of(name: str) -> list[str]:
    return [rest for step, rest in STEPS if step == name]


def _packages(lock: str) -> dict[str, str]:
    """Split a lock file into one block per package: the line with the version and the lines with hashes."""
    blocks = re.split(r"^(?=[^ \n])", lock, flags=re.MULTILINE)
    return {block.split(" ", 1)[0]: block for block in blocks if block}


def test_base_image_is_a_fixed_python() -> None:
    bases = [words for words in (rest.split() for rest in _of("FROM")) if not words[0].startswith("${")]
    assert {words[-1] for words in bases} == {"cpu", "gpu"}
    assert {words[0] for words in bases} == {"python:3.11-slim-bookworm"}
    assert _of("FROM")[-1] == "${DEVICE}"
    assert _of("ARG")[0] == "DEVICE=gpu"


def test_image_does_not_run_as_root() -> None:
    assert [rest for step, rest in STEPS if step == "USER"][-1] == "1000"
    assert [step for step, _ in STEPS].index("USER") > max(n for n, (step, _) in enumerate(STEPS) if step == "RUN")
    assert "HOME=/home/lungseg" in _of("ENV")


def test_build_downloads_only_packages() -> None:
    assert not _of("ADD")
    runs = " ".join(_of("RUN"))
    assert not re.search(r"curl|wget +\S*:|https?:|git +clone|pip install(?!.*--no-deps)", runs)
    assert {copy.split()[0] for copy in _of("COPY")} == {
        "requirements.lock",
        "cluster/install.sh",
        "pyproject.toml",
        "lungseg",
        "jobs",
    }
    assert "wget" in runs, "KubeRay's probes need it"
    assert "g++" in runs, "--compute.compile needs it"


def test_image_contains_no_secret() -> None:
    text = (ROOT / "cluster" / "Dockerfile").read_text() + (ROOT / "cluster" / "Dockerfile.dockerignore").read_text()
    settings = " ".join(_of("ARG") + _of("ENV") + _of("RUN"))
    assert not re.search(r"token|secret|passw|credential|_key", settings, re.IGNORECASE)
    assert "--mount=type=secret" not in text


def test_build_context_contains_only_copied_files() -> None:
    lines = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = {word for copy in _of("COPY") for word in copy.split()[:-1]}
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_cpu_lock_omits_only_torch_and_cuda() -> None:
    result = subprocess.run([INSTALL, "cpu-lock"], capture_output=True, text=True, check=True, timeout=30)
    locked, cpu = _packages(LOCK), _packages(result.stdout)
    omitted = locked.keys() - cpu.keys()
    assert {name.split("==")[0] for name in omitted} >= {"torch", "torchvision", "triton", "nvidia-cublas"}
    assert all(CUDA.fullmatch(name.split("==")[0]) for name in omitted)
    assert not [name for name in cpu if CUDA.fullmatch(name.split("==")[0])]
    assert all(block == locked[name] for name, block in cpu.items())
    assert all("--hash=sha256:" in block for block in cpu.values())


def _installs(tmp_path: Path, *words: str, **env: str) -> list[str]:
    """Run the installer with a fake python; return its arguments and the lock files passed to it."""
    fake = tmp_path / "python"
    fake.write_text('#!/usr/bin/env bash\necho "$@" >>"$CALLS"\nfor file; do [[ $file != /* ]] || cat "$file"; done\n')
    fake.chmod(0o755)
    calls = tmp_path / "calls"
    path = f"{tmp_path}:/usr/bin:/bin"
    subprocess.run([INSTALL, *words], env={"PATH": path, "CALLS": str(calls), **env}, check=True, timeout=30)
    return calls.read_text().splitlines()


def test_gpu_install_uses_the_complete_lock_with_hashes(tmp_path: Path) -> None:
    (command,) = _installs(tmp_path, "gpu")
    assert re.fullmatch(r"-m pip install --no-cache-dir --no-deps --require-hashes -r \S+/requirements\.lock", command)


def test_cpu_install_uses_the_locked_torch_version(tmp_path: Path) -> None:
    locked, torch = _installs(tmp_path, "cpu")
    assert "--require-hashes" in locked
    names = re.findall(r"^((?:torch|torchvision)==[^ ]+)", LOCK, re.MULTILINE)
    assert torch.split()[-2:] == names
    assert "--index-url https://download.pytorch.org/whl/cpu" in torch


def test_mirror_variable_replaces_the_index(tmp_path: Path) -> None:
    torch = _installs(tmp_path, "cpu", TORCH_CPU_INDEX="https://mirror.example.com/cpu")[1]
    assert "--index-url https://mirror.example.com/cpu" in torch


def test_unknown_device_is_refused() -> None:
    result = subprocess.run([INSTALL, "tpu"], capture_output=True, text=True, check=False, timeout=30)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "'tpu'" in result.stderr
