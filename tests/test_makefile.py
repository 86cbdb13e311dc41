"""make demo: the jobs for phantoms, for X-rays with masks, and for X-rays without masks."""

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
    jobs = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("RUN ")]
    return done.returncode, jobs, done.stdout + done.stderr


TRAINING = ["jobs/prepare.py", "jobs/train.py", "jobs/infer.py", "jobs/report.py"]


@pytest.mark.parametrize("words", [[], ["DATA=masked"], ["DATA=missing"]])
def test_demo_trains_on_phantoms_and_masks(words: list[str], project: Path) -> None:
    assert demo(project, *words)[:2] == (0, TRAINING)


def test_images_without_masks_are_refused_before_preparing(project: Path) -> None:
    status, jobs, output = demo(project, "DATA=films")
    assert status != 0
    assert jobs == []
    assert "films: no image has a mask, and training needs masks: add masks, or run make demo once" in output


def test_images_without_masks_are_segmented_with_a_trained_model(project: Path) -> None:
    for name in ("phantoms", "xrays"):
        (project / "demo" / name / "runs" / "demo").mkdir(parents=True)
    status, jobs, output = demo(project, "DATA=films")
    assert (status, jobs) == (0, ["jobs/infer.py", "jobs/export.py"])
    assert "segmenting the images with demo/xrays/runs/demo" in output
