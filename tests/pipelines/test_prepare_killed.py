"""Preparing as a process of its own: on one CPU and on two, killed and started again, and in a bucket."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from lungseg import storage
from lungseg.imaging import phantom
from tests.pipelines.processes import family, kill, title

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 24  # a style


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    phantom.write_archive(folder, IMAGES, size=160)
    return folder


def start(source: str, out: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), "archive", "--source", source, "--out", out]
    options = ["--preprocess.size", "128", "--images-per-shard", "4"]
    values = {**os.environ, "RAY_ADDRESS": "local", **environment}
    return subprocess.Popen([*command, *options], env=values, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> str:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err.decode()
    return err.decode() + out.decode()


def wait_for(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def made(folder: Path) -> dict[str, bytes]:
    names = ("*/*.tar", "*/index.parquet", "*/manifest.parquet", "*/dataset.json", "duplicates.parquet")
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in sorted(folder.glob(name))}


@pytest.fixture(scope="module")
def on_two(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What two CPUs make of the phantoms."""
    out = tmp_path_factory.mktemp("two")
    said = finish(start(str(phantoms), str(out), RAY_OVERRIDE_RESOURCES='{"CPU": 2}'))
    assert "2 CPUs" in said
    result = made(out)
    assert len([name for name in result if name.endswith(".tar")]) == 2 * IMAGES / 4
    return result


def test_one_cpu_makes_the_same_bytes(on_two: dict[str, bytes], phantoms: Path, tmp_path: Path) -> None:
    said = finish(start(str(phantoms), str(tmp_path), RAY_OVERRIDE_RESOURCES='{"CPU": 1}'))
    assert "1 CPUs" in said
    assert made(tmp_path) == on_two


def test_killed_three_times_makes_the_same_bytes(on_two: dict[str, bytes], phantoms: Path, tmp_path: Path) -> None:
    def tars() -> int:
        return len(list(tmp_path.glob("*/*.tar")))

    for least in (1, 4, 8):
        process = start(str(phantoms), str(tmp_path))
        wait_for(process, lambda least=least: tars() >= least)  # type: ignore[misc]
        kill(family(process))
        process.communicate()
        assert not list(tmp_path.glob("*/dataset.json"))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/parts/*[0-9].json")}
    finish(start(str(phantoms), str(tmp_path)))
    assert made(tmp_path) == on_two
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(tmp_path.rglob(".writing-*"))


def test_a_bucket_gives_the_same_tars_though_a_worker_is_killed(
    bucket: str, on_two: dict[str, bytes], phantoms: Path
) -> None:
    filesystem, inner = storage.open_filesystem(f"{bucket}/archive")
    pafs.copy_files(str(phantoms), inner, destination_filesystem=filesystem)
    process = start(f"{bucket}/archive", f"{bucket}/out")
    wait_for(process, lambda: storage.exists(f"{bucket}/out/phantom-montgomery/parts"))
    busy = [one for one in family(process) if title(one).startswith("ray::Map")]
    assert busy
    kill(busy[:1])
    finish(process)
    for name, content in on_two.items():
        if name.endswith(".tar"):
            assert storage.read_bytes(f"{bucket}/out/{name}") == content
    summary = json.loads(storage.read_bytes(f"{bucket}/out/summary.json"))
    assert summary["counts"]["ok"] == summary["inputs"] == 2 * IMAGES
