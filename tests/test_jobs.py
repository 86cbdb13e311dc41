"""Command lines of the jobs: an error is one or two lines; status 2 for settings, 1 for failed work."""

import contextlib
import io
import logging
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from lungseg import cli
from lungseg.config.recipes import Job

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.usefixtures("ray_cluster")


def job(name: Job, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command line of a job in this process and on the shared Ray, because a new Ray per test is slow."""
    logging.getLogger("lungseg").handlers.clear()  # handlers of the previous call, which write to its output
    files = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(file, "utf-8", write_through=True) for file in files)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(name, args)
    return subprocess.CompletedProcess(args, status, *(file.getvalue().decode() for file in files))


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """Return the error of a failed job, one or two lines; there must be no traceback."""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if "error: " in line or "settings: " in line]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_help_needs_neither_torch_nor_ray() -> None:
    script = (
        "import sys, runpy\n"
        "for path in sys.argv[1:]:\n"
        "    sys.argv = [path, 'demo', '--help']\n"
        "    try: runpy.run_path(path, run_name='__main__')\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "for words in (['--help'], ['segment', '--help']):\n"
        "    sys.argv = ['lungseg', *words]\n"
        "    try: runpy.run_module('lungseg', run_name='__main__')\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'ray', 'numpy', 'cv2', 'pandas'} & set(sys.modules)\n"
        "import lungseg.segment_command.run\n"
        "assert not {'torch', 'ray', 'pandas', 'wandb', 'webdataset'} & set(sys.modules)"
    )
    jobs = [str(path) for path in sorted((ROOT / "jobs").glob("*.py"))]
    command = [sys.executable, "-c", script, *jobs]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("usage: ") == len(jobs) + 2 == 9


def test_job_file_ends_with_the_status_and_a_line() -> None:
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), "nonesuch"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "pass one of demo" in complaint(result)


def test_dry_run_prints_the_settings_and_does_nothing(tmp_path: Path) -> None:
    result = job("train", "paper", "--dry-run", "--out", str(tmp_path / "out"), "--optim.lr", "3e-4")
    assert result.returncode == 0
    settings = yaml.safe_load(result.stdout)
    assert settings["model"]["encoder"] == "resnet50"
    assert settings["optim"]["lr"] == 3e-4
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("train", ["demo", "--optim.rl", "3"], "did you mean --optim.lr?"),
        ("train", ["nonesuch"], "pass one of demo"),
        ("train", ["paper"], "pass --data FOLDER"),
        ("train", ["demo", "--only-folds", "9"], "pass 0 to 3"),
        ("train", ["demo", "--epochs", "0"], "greater than or equal to 1"),
        ("prepare", ["small"], "pass --source FOLDER"),
        ("prepare", ["small", "--masks", "x"], "pass the folder of images too"),
        ("infer", ["archive"], "pass --archive FOLDER"),
        ("adapt", ["archive"], "pass --checkpoint FOLDER"),
        ("export", ["archive"], "pass --predictions FOLDER"),
        ("report", ["study"], "--study"),
    ],
)
def test_wrong_settings_end_with_2(name: Job, args: list[str], expected: str) -> None:
    result = job(name, *args)
    assert result.returncode == 2
    assert expected in complaint(result)


def test_missing_folder_ends_with_1(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for name, args in (
        ("prepare", ["demo", "--source", missing]),
        ("train", ["demo", "--data", missing]),
        ("infer", ["archive", "--archive", missing, "--checkpoint", missing]),
        ("export", ["archive", "--predictions", missing]),
        ("report", ["study", "--study", missing]),
    ):
        result = job(name, *args, "--out", str(tmp_path / "out"))
        assert result.returncode == 1, result.stderr
        assert f"{missing}: no such folder" in complaint(result)


def test_empty_folder_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = job("prepare", "demo", "--source", str(tmp_path / "empty"), "--out", str(tmp_path / "out"))
    assert result.returncode == 1
    assert "no image in it" in complaint(result)
    result = job("train", "demo", "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "out"))
    assert result.returncode == 1
    assert "no dataset.json" in complaint(result)


def test_images_without_masks_cannot_train(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for i in range(3):
        cv2.imwrite(str(archive / f"{i}.png"), np.random.default_rng(i).integers(0, 255, (64, 64), np.uint8))
    prepared = str(tmp_path / "prepared")
    assert job("prepare", "demo", "--source", str(archive), "--out", prepared).returncode == 0
    result = job("train", "demo", "--data", prepared, "--out", str(tmp_path / "runs"))
    assert result.returncode == 1
    assert "none of 3 images has a mask" in complaint(result)


def test_masks_of_another_size_are_rejected(tmp_path: Path) -> None:
    for name, shape in (("images", (64, 64)), ("masks", (64, 60))):
        (tmp_path / "archive" / name).mkdir(parents=True)
        image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        if name == "masks":
            image = np.zeros(shape, np.uint8)
            image[10:40, 10:30] = 255
        cv2.imwrite(str(tmp_path / "archive" / name / "one.png"), image)
    result = job("prepare", "demo", "--source", str(tmp_path / "archive"), "--out", str(tmp_path / "prepared"))
    assert result.returncode == 1
    assert "rejected: 1 mask_size" in complaint(result)


def test_folder_without_checkpoint_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    result = job("infer", "archive", "--archive", str(tmp_path / "archive"), "--checkpoint", str(tmp_path / "archive"))
    assert result.returncode == 1
    assert "not a checkpoint" in complaint(result)
