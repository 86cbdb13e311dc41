"""Five thousand images, fifty broken, and a job that is killed: `python tests/stress_infer.py --checkpoint RUN`.

Runs jobs/infer.py over the phantoms of benchmark_infer.py once undisturbed, and once with SIGKILL of an actor, of a
worker process, of the driver and of all Ray at random moments, started again with the same command until it ends. Then
every image must have one row, and every mask must be the same to the bit. Prints one JSON object; ends with 1 where
something differs. Not in the suite: it takes minutes; tests/pipelines/test_infer_killed.py is its small sister.
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
VICTIMS = ("PredictPart", "ray::", "driver", "all", "PredictPart", "ray::")


def archive(work: Path, count: int) -> Path:
    """Link the phantoms into a folder of their own and break some: cut short, emptied, or of other bytes."""
    whole, folder = work / f"infer-{count}", work / f"stress-{count}"
    draw(whole, count)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in whole.iterdir():
        os.link(path, folder / path.name)
    for number in range(BROKEN):
        path = folder / f"{2 + number * (count - 2) // BROKEN:05d}.png"
        content = path.read_bytes()
        path.unlink()
        path.write_bytes([content[: len(content) // 2], b"", b"no picture" * 100][number % 3])
    return folder


def start(folder: Path, run: str, out: Path) -> subprocess.Popen[bytes]:
    """Start the job in a session of its own."""
    command = [sys.executable, str(ROOT / "jobs" / "infer.py"), "archive", "--archive", str(folder)]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    return subprocess.Popen([*command, "--checkpoint", run, "--out", str(out)], env=environment, start_new_session=True)


def kill(process: subprocess.Popen[bytes], kind: str, chance: random.Random) -> str:
    """Kill what is named, if it is there: an actor, any worker, the driver, or everything that the job started."""
    try:
        driver = psutil.Process(process.pid)
        family = driver.children(recursive=True)
    except psutil.NoSuchProcess:
        return ""
    if kind == "driver":
        driver.kill()
        return "driver"
    if kind == "all":
        for one in [driver, *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        return "all"
    named = []
    for one in family:
        with contextlib.suppress(psutil.Error):
            title = " ".join(one.cmdline()[:1])
            if kind in title and "IDLE" not in title:
                named.append((one, title))
    if not named:
        return ""
    victim, title = chance.choice(named)
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.send_signal(signal.SIGKILL)
    return title


def disturbed(folder: Path, run: str, out: Path, chance: random.Random) -> list[str]:
    """Run the job to its end through all kills; say what was killed, and when."""
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
            said = kill(process, left[0], chance)
            if said:
                killed.append(f"{said} after {time.monotonic() - began:.0f} s")
                left.pop(0)
                wait += chance.uniform(5, 15)
        time.sleep(0.1)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Read what shows of every row: id, status, mask."""
    columns = ["source_uri", "image_id", "status", "mask", "dice", "area_px"]
    return [
        row for path in sorted(out.glob("part-*.parquet")) for row in pq.read_table(path, columns=columns).to_pylist()
    ]


def main() -> None:
    """Run both, compare, print."""
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
        expected, found = rows_of(calm), rows_of(rough)
    ids = Counter(row["source_uri"] for row in found)
    result = {
        "killed": killed,
        "seconds": {"undisturbed": round(alone, 1), "disturbed": round(took, 1)},
        "rows": len(found),
        "twice": sum(count > 1 for count in ids.values()),
        "missing": len({row["source_uri"] for row in expected} - set(ids)),
        "statuses": dict(Counter(row["status"] for row in found)),
        "different": sum(one != other for one, other in zip(expected, found, strict=False)),
    }
    print(json.dumps(result, indent=1))
    whole = len(found) == arguments.images and not (result["twice"] or result["missing"] or result["different"])
    raise SystemExit(0 if whole else 1)


if __name__ == "__main__":
    main()
