"""All the way in a bucket that refuses one request in twenty, a worker killed on the way; and a bucket that is gone."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.fs as pafs
import pytest

from lungseg import storage
from lungseg.imaging import phantom
from tests.cluster import commands
from tests.cluster.refusing import refusing
from tests.pipelines.processes import family, kill, title

pytestmark = pytest.mark.slow

JOBS = ("prepare", "train", "infer", "report")
REFUSED = 0.05
TOLD_S = 60.0  # until a bucket that is gone is told


def _finish(process: subprocess.Popen[bytes], log: Path, limit_s: float = 280.0) -> None:
    try:
        assert process.wait(timeout=limit_s) == 0, log.read_text()
    finally:
        kill(family(process))


def _kill_one(process: subprocess.Popen[bytes], kind: str, ready: Callable[[], bool], log: Path) -> None:
    """Kill a worker of a kind once the job is in the midst of its work."""

    def busy() -> list[psutil.Process]:
        return [one for one in family(process) if title(one).startswith("ray::") and kind in title(one)]

    deadline = time.monotonic() + 280
    while not (ready() and (found := busy())):
        assert process.poll() is None, f"it ended before a worker was killed: {log.read_text()}"
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    kill(found[:1])


def _all_jobs(place: str, archive: str, values: dict[str, str], logs: Path, disturbed: bool = False) -> None:
    for job in JOBS:
        log = logs / f"{job}.log"
        began = time.monotonic()
        process = commands.start(commands.words(job, place, archive), values, log)
        try:
            if disturbed and job == "train":
                _kill_one(process, "RayTrainWorker", lambda: bool(_checkpoints(place)), log)
        finally:
            _finish(process, log)
        assert "Traceback" not in log.read_text()
        print(f"{job}: {time.monotonic() - began:.1f} s")  # noqa: T201


def _checkpoints(place: str) -> list[str]:
    there = storage.exists(f"{place}/runs/one")
    return [path for path in storage.list_files(f"{place}/runs/one") if path.endswith("config.json")] if there else []


@pytest.mark.timeout(600)
def test_a_bucket_that_refuses_gives_what_a_disk_gives(bucket: str, tmp_path: Path) -> None:
    archive, disk, far = str(tmp_path / "archive"), str(tmp_path / "disk"), f"{bucket}/work"
    phantom.write_archive(tmp_path / "archive", 4, size=96)
    filesystem, inner = storage.open_filesystem(f"{bucket}/archive")
    pafs.copy_files(archive, inner, destination_filesystem=filesystem)
    for name in ("disk-logs", "far-logs", "home"):
        (tmp_path / name).mkdir()
    _all_jobs(disk, archive, commands.environment(tmp_path / "home"), tmp_path / "disk-logs")
    with refusing(os.environ["AWS_ENDPOINT_URL"], REFUSED, seed=7) as (address, refusals):
        values = commands.environment(tmp_path / "home", AWS_ENDPOINT_URL=address)
        _all_jobs(far, f"{bucket}/archive", values, tmp_path / "far-logs", disturbed=True)
        assert refusals.refused > 0
        print(f"{refusals.refused} of {refusals.requests} requests refused")  # noqa: T201
    assert commands.prepared(far) == commands.prepared(disk)
    assert commands.trained(far) == commands.trained(disk)
    assert commands.predicted(far, f"{bucket}/archive") == commands.predicted(disk, archive)
    assert commands.reported(far, f"{bucket}/archive") == commands.reported(disk, archive)


# Asks a bucket for one thing, and says after how many seconds it was told what.
_ASK = """
import json, sys, time
from lungseg import storage
from lungseg.errors import InputError

asks = {"look": storage.exists, "read": storage.read_bytes, "write": lambda path: storage.write_bytes(path, b"1")}
began = time.monotonic()
try:
    told = f"no error but {asks[sys.argv[1]]('s3://hospital/x')!r}"
except InputError as error:
    told = str(error)
json.dump([time.monotonic() - began, told], sys.stdout)
"""


def _silent() -> socket.socket:
    """Listen on a port: the system takes connections, and nobody answers."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(100)
    return server


def _asked(what: str, values: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _ASK, what], cwd=commands.ROOT, env=values, stdout=-1, text=True)


def test_a_bucket_that_is_gone_is_told_in_a_line(bucket: str, tmp_path: Path) -> None:
    phantom.write_archive(tmp_path / "archive", 1, size=64)
    with _silent() as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        mute, down = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in (silent, closed))
        closed.close()
        places = {
            name: commands.environment(tmp_path, AWS_ENDPOINT_URL=at) for name, at in (("mute", mute), ("down", down))
        }
        here = commands.environment(tmp_path)
        report = ["jobs/report.py", "study", "--study"]
        prepare = ["jobs/prepare.py", "archive", "--out", str(tmp_path / "out"), "--source"]
        jobs = {
            "mute": ([*report, f"{bucket}/runs"], places["mute"], "the bucket does not answer"),
            "down": ([*prepare, f"{bucket}/archive"], places["down"], "the bucket does not answer"),
            "named wrongly, read": ([*prepare, "s3://hospitl/archive"], here, "no such folder"),
            "named wrongly, written": (
                [*prepare, str(tmp_path / "archive"), "--out", "s3://hospitl/out"],
                here,
                "cannot be written .*Bucket 'hospitl' not found.* check the bucket's name",
            ),
        }
        logs = {name: tmp_path / f"{name}.log" for name in jobs}
        started = {name: commands.start(words, values, logs[name]) for name, (words, values, _) in jobs.items()}
        asked = {
            f"{what}, {name}": _asked(what, values)
            for name, values in places.items()
            for what in ("look", "read", "write")
        }
        try:
            for name, (_, _, expected) in jobs.items():
                assert started[name].wait(timeout=200) == 1, logs[name].read_text()
                told = commands.complaint(logs[name].read_text())
                assert re.search(rf"error: s3://hospit[^ ]*: {expected}", told)
            for name, process in asked.items():
                seconds, told = json.loads(process.communicate(timeout=200)[0])
                print(f"{name}: told in {seconds:.1f} s")  # noqa: T201
                assert re.match(r"s3://hospital/x: (the bucket does not answer|cannot be written) ", told)
                assert seconds < TOLD_S
        finally:
            for one in (*started.values(), *asked.values()):
                one.kill()
                one.wait()
