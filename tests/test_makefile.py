"""make demo: the commands for no folder, for X-rays with masks, and for X-rays without masks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the Makefile and a Python that prints the jobs instead of running them."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml", ".venv/installed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\ncase $1 in -c) exec {sys.executable} "$@" ;; esac\necho "RUN $@"\n')
    python.chmod(0o755)
    for name in ("films/a.png", "masked/images/a.png", "masked/masks/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def demo(project: Path, *words: str) -> tuple[int, list[str], str]:
    """Return the status, the jobs that were started, and all output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["make", "demo", *words], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    jobs = [line.split()[3] for line in done.stdout.splitlines() if line.startswith("RUN -m lungseg ")]
    return done.returncode, jobs, done.stdout + done.stderr


TRAINING = ["prepare", "train", "infer", "report"]


def test_demo_segments_an_xray_and_trains_on_phantoms(project: Path) -> None:
    status, jobs, output = demo(project)
    assert (status, jobs) == (0, ["segment", *TRAINING])
    assert "RG1_UNCR.dcm --out demo/first-xray" in output


@pytest.mark.parametrize("folder", ["masked", "missing"])
def test_demo_trains_on_a_folder_with_masks(folder: str, project: Path) -> None:
    assert demo(project, f"DATA={folder}")[:2] == (0, TRAINING)


def test_demo_segments_a_folder_without_masks(project: Path) -> None:
    status, jobs, output = demo(project, "DATA=films")
    assert (status, jobs) == (0, ["segment"])
    assert "segment films --out demo/films" in output
