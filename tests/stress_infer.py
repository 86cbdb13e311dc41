"""Infer 5000 images, 50 of them damaged, with a job that is killed: `python tests/stress_infer.py --checkpoint RUN`.

Runs jobs/infer.py twice on the phantoms of benchmark_infer.py. The first run is undisturbed. In the second run, an
actor, a worker process, the driver and all of Ray are killed at random moments, and the same command is repeated until
it finishes. Both runs must have one row per image and identical masks. Prints one JSON object; exit status 1 if
anything differs. It takes minutes, so it is not part of the test suite: see tests/pipelines/test_infer_killed.py.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent))
from benchmark_infer import draw

ROOT = Path(__file__).resolve().parents[1]
BROKEN = 50
VICTIMS = ("GpuActor", "ray::", "driver", "all", "GpuActor", "ray::")


def archive(work: Path, count: int) -> Path:
    """Link the phantoms into a new folder and damage some: truncated, empty, or no image."""
    source, folder = work / f"infer-{count}", work / f"stress-{count}"
    draw(source, count)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in source.iterdir():
        os.link(path, folder / path.name)
    for number in range(BROKEN):
        path = folder / f"{2 + number * (count - 2) // BROKEN:05d}.png"
        content = path.read_bytes()
        path.unlink()
        path.write_bytes([content[: len(content) // 2], b"", b"no image" * 100][number % 3])
    return folder


def start(folder: Path, run: str, out: Path) -> subprocess.Popen[bytes]:
    """Start the job in its own session."""
    command = [sys.executable, str(ROOT / "jobs" / "infer.py"), "archive", "--archive", str(folder)]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    return subprocess.Popen([*command, "--checkpoint", run, "--out", str(out)], env=environment, start_new_session=True)


def kill(process: subprocess.Popen[bytes], kind: str, chance: random.Random) -> str:
    """Kill an actor, a worker, the driver, or all processes of the job; return its title, or "" if none runs."""
    try:
        driver = psutil.Process(process.pid)
        family = driver.children(recursive=True)
    except psutil.NoSuchProcess:
        return ""
    if kind == "driver":
        driver.kill()
        return "driver"
    if kind == "all":
        for member in [driver, *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        return "all"
    candidates = []
    for member in family:
        with contextlib.suppress(psutil.Error):
            title = " ".join(member.cmdline()[:1])
            if kind in title and "IDLE" not in title:
                candidates.append((member, title))
    if not candidates:
        return ""
    victim, title = chance.choice(candidates)
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.send_signal(signal.SIGKILL)
    return title


def disturbed(folder: Path, run: str, out: Path, chance: random.Random) -> list[str]:
    """Run the job until all kills are done and it has finished; return what was killed, and when."""
    killed: list[str] = []
    left = list(VICTIMS)
    process, began = start(folder, run, out), time.monotonic()
    wait = chance.uniform(15, 30)
    while True:
        if process.poll() is not None:
            if process.returncode == 0:
                return killed
            process, began, wait = start(folder, run, out), time.monotonic(), chance.uniform(15, 30)
        if left and time.monotonic() - began > wait:
            victim = kill(process, left[0], chance)
            if victim:
                killed.append(f"{victim} after {time.monotonic() - began:.0f} s")
                left.pop(0)
                wait += chance.uniform(5, 15)
        time.sleep(0.1)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Read id, status and mask of all rows."""
    columns = ["source_uri", "image_id", "status", "mask", "dice", "area_px"]
    return [
        row
        for path in sorted(out.glob("rows/part-*.parquet"))
        for row in pq.read_table(path, columns=columns).to_pylist()
    ]


def main() -> None:
    """Run both jobs, compare the rows, print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lungseg-benchmark")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = archive(arguments.work, arguments.images)
    with tempfile.TemporaryDirectory() as place:
        calm, rough = Path(place) / "calm", Path(place) / "rough"
        began = time.monotonic()
        if start(folder, arguments.checkpoint, calm).wait():
            raise SystemExit("the undisturbed run failed")
        alone = time.monotonic() - began
        began = time.monotonic()
        killed = disturbed(folder, arguments.checkpoint, rough, random.Random(arguments.seed))
        took = time.monotonic() - began
        expected, rows = rows_of(calm), rows_of(rough)
    ids = Counter(row["source_uri"] for row in rows)
    result = {
        "killed": killed,
        "seconds": {"undisturbed": round(alone, 1), "disturbed": round(took, 1)},
        "rows": len(rows),
        "twice": sum(count > 1 for count in ids.values()),
        "missing": len({row["source_uri"] for row in expected} - set(ids)),
        "statuses": dict(Counter(row["status"] for row in rows)),
        "different": sum(first != second for first, second in zip(expected, rows, strict=False)),
    }
    print(json.dumps(result, indent=1))
    passed = len(rows) == arguments.images and not (result["twice"] or result["missing"] or result["different"])
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
