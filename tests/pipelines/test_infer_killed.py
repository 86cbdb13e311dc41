"""An inference whose actor, worker and job are killed: the same command completes it."""

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from lungseg import storage
from lungseg.config.command_line import parse
from lungseg.imaging import phantom
from lungseg.pipelines import infer
from tests.pipelines.processes import family, kill, running, title
from tests.shared_fixtures import steady

ROOT = Path(__file__).resolve().parents[2]
IMAGES, PARTS = 60, 30
Row = dict[str, Any]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty phantoms, three of them damaged in different ways."""
    folder = tmp_path_factory.mktemp("films")
    phantom.write_archive(folder, IMAGES // 2, size=256)
    images = sorted(folder.rglob("images/*"))
    assert len(images) == IMAGES
    images[7].write_bytes(images[7].read_bytes()[:500])
    images[20].write_bytes(b"")
    images[41].unlink()
    images[41].symlink_to("nowhere.png")
    return folder


# Runs the job with shorter limits without progress: an actor that is killed while idle stalls the job until then.
_IMPATIENT = """
import runpy, sys
from lungseg.pipelines import infer_on_cluster
infer_on_cluster._STALLS_S = (20, 60, 200)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def arguments(films: Path, model: Path, out: Path, backend: str) -> list[str]:
    options = {
        "--archive": films,
        "--checkpoint": model,
        "--out": out,
        "--part-size": 2,
        "--batch-size": 2,
        "--workers": 1,
        "--backend": backend,
    }
    return ["demo", *(str(word) for pair in options.items() for word in pair), "--tta", "flip"]


def job(films: Path, model: Path, out: Path, backend: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    words = [str(ROOT / "jobs" / "infer.py"), *arguments(films, model, out, backend)]
    command = [sys.executable, "-c", _IMPATIENT, *words]
    return running(command, out.with_suffix(".log"), RAY_OVERRIDE_RESOURCES='{"CPU": 2}')


def finish(process: subprocess.Popen[bytes], out: Path) -> None:
    assert process.wait(timeout=240) == 0, out.with_suffix(".log").read_text()


def parts(out: Path) -> list[Path]:
    return sorted(out.glob("rows/part-*.parquet"))


def actors(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in family(process) if title(child).startswith("ray::") and "GpuActor" in title(child)]


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    names = ("open_part", "finish_part")
    titles = {child: title(child) for child in family(process)}
    return [child for child, text in titles.items() if text.startswith("ray::") and any(name in text for name in names)]


def the_job(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return family(process)[:1]


def kill_one(
    process: subprocess.Popen[bytes],
    victims: Callable[[subprocess.Popen[bytes]], list[psutil.Process]],
    out: Path,
    chance: random.Random,
) -> None:
    """Kill one of the victims at a random moment after the next part is written, while the job still runs."""
    least, deadline = len(parts(out)) + 1, time.monotonic() + 240
    moment, candidates = None, list[psutil.Process]()
    while moment is None or time.monotonic() < moment or not candidates:
        assert process.poll() is None, out.with_suffix(".log").read_text()
        assert time.monotonic() < deadline, out.with_suffix(".log").read_text()
        if moment is None and len(parts(out)) >= least:
            moment = time.monotonic() + chance.uniform(0.0, 0.1)
        time.sleep(0.005)
        candidates = victims(process)
    kill(chance.sample(candidates, 1))


def rows_of(out: Path) -> list[Row]:
    return [row for path in parts(out) for row in storage.read_table(str(path)).to_pylist()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_inference_ends_with_the_undisturbed_rows(
    without_ray: None, films: Path, trained: Path, tmp_path: Path
) -> None:
    """With one backend: tests/inference/backends/test_resume.py has what differs between them."""
    pytest.importorskip("onnxruntime")
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed"
    infer.run(parse("infer", arguments(films, trained, undisturbed, "onnxruntime")))  # type: ignore[arg-type]
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    # A dead actor and a dead worker are replaced while the job continues. Then the job is killed, and its Ray ends.
    with job(films, trained, out, "onnxruntime") as process:
        kill_one(process, actors, out, chance)
        kill_one(process, workers, out, chance)
        kill_one(process, the_job, out, chance)
        assert process.wait(timeout=60) != 0
    assert not (out / "predictions.json").exists(), f"the job was too short to be killed (seed {seed})"
    kept = {path: path.stat().st_mtime_ns for path in parts(out)}
    assert 0 < len(kept) < PARTS, f"seed {seed}"
    with job(films, trained, out, "auto") as process:  # it takes the backend of the parts that are kept
        finish(process, out)
    rows, expected = rows_of(out), rows_of(undisturbed)
    assert set(Counter(row["source_uri"] for row in rows).values()) == {1}
    assert len({(row["dataset"], row["image_id"]) for row in rows}) == len(rows) == IMAGES
    assert steady(rows) == steady(expected), f"seed {seed}"
    assert len({row["mask"] for row in expected}) > IMAGES / 2
    summary = storage.read_json(str(out / "predictions.json"))
    assert summary["counts"] == {"ok": IMAGES - 3, "rejected": 2, "failed": 1}
    assert (summary["images"], summary["backend"]) == (IMAGES, "onnxruntime")
    rewritten = [path for path in kept if path.stat().st_mtime_ns != kept[path]]
    assert all("failed" in storage.read_table(str(path)).column("status").to_pylist() for path in rewritten)
    assert not list(out.rglob(".writing-*"))
