"""Preparation that is killed twice: the same command completes it with the same bytes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lungseg.config.command_line import parse
from lungseg.imaging import phantom
from lungseg.pipelines import prepare
from tests.pipelines.processes import family, kill

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 24  # a style, of two


def _arguments(source: Path, out: Path) -> list[str]:
    options = ("--preprocess.size", "128", "--images-per-shard", "4")
    return ["archive", "--source", str(source), "--out", str(out), *options]


def _start(source: Path, out: Path, cpus: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), *_arguments(source, out)]
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_OVERRIDE_RESOURCES": f'{{"CPU": {cpus}}}'}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def _wait_for(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _written(folder: Path) -> dict[str, bytes]:
    names = ("*/*.tar", "*/index.parquet", "*/manifest.parquet", "*/dataset.json", "duplicates.parquet")
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in sorted(folder.glob(name))}


@pytest.mark.slow
def test_killed_on_two_cpus_and_finished_on_one(ray_cluster: None, tmp_path: Path) -> None:
    source, undisturbed, out = tmp_path / "phantoms", tmp_path / "undisturbed", tmp_path / "killed"
    phantom.write_archive(source, IMAGES, size=160)
    prepare.run(parse("prepare", _arguments(source, undisturbed)))  # type: ignore[arg-type]
    assert len(list(undisturbed.glob("*/*.tar"))) == 2 * IMAGES / 4
    for least in (1, 6):  # the second kill hits a job that completes the first
        process = _start(source, out, cpus=2)
        _wait_for(process, lambda least=least: len(list(out.glob("*/*.tar"))) >= least)  # type: ignore[misc]
        kill(family(process))
        process.communicate()
        assert not list(out.glob("*/dataset.json"))
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/parts/*[0-9].json")}
    process = _start(source, out, cpus=1)
    log = process.communicate(timeout=200)[1].decode()
    assert process.returncode == 0, log
    assert "1 CPU" in log
    assert _written(out) == _written(undisturbed)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(out.rglob(".writing-*"))
