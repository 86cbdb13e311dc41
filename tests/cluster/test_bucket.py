"""A bucket that refuses one request in twenty while workers are killed, and a bucket that does not answer."""

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
from lungseg.config.recipes import Job
from lungseg.imaging import phantom
from tests.cluster import commands
from tests.cluster.refusing import refusing
from tests.pipelines.processes import family, kill, title

pytestmark = pytest.mark.slow

JOBS: tuple[Job, ...] = ("prepare", "train", "infer", "report")
REFUSED = 0.05
REPORTED_S = 60.0  # until a job reports that a bucket does not answer


def _kill_worker(process: subprocess.Popen[bytes], kind: str, ready: Callable[[], object], log: Path) -> None:
    """Kill a worker whose title contains `kind` as soon as one runs and `ready` holds."""

    def workers() -> list[psutil.Process]:
        return [worker for worker in family(process) if title(worker).startswith("ray::") and kind in title(worker)]

    deadline = time.monotonic() + 280
    while not (ready() and (victims := workers())):
        assert process.poll() is None, f"the job ended before a worker was killed: {log.read_text()}"
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    kill(victims[:1])


def _checkpoints(root: str) -> list[str]:
    study = f"{root}/runs/one"
    return [path for path in storage.list_files(study) if path.endswith("config.json")] if storage.exists(study) else []


def _run_disturbed(job: Job, root: str, archive: str, environment: dict[str, str], log: Path) -> None:
    process = commands.start(commands.words(job, root, archive), environment, log)
    try:
        if job == "prepare":
            _kill_worker(process, "ray::Map", lambda: True, log)
        if job == "train":
            _kill_worker(process, "RayTrainWorker", lambda: _checkpoints(root), log)
        assert process.wait(timeout=280) == 0, log.read_text()
    finally:
        kill(family(process))
    assert "Traceback" not in log.read_text()


@pytest.mark.timeout(600)
def test_refusing_bucket_and_killed_workers_change_no_result(bucket: str, undisturbed: Path, tmp_path: Path) -> None:
    local, archive, remote = str(undisturbed), str(undisturbed / "archive"), f"{bucket}/work"
    filesystem, inner = storage.open_filesystem(f"{bucket}/archive")
    pafs.copy_files(archive, inner, destination_filesystem=filesystem)
    with refusing(os.environ["AWS_ENDPOINT_URL"], REFUSED, seed=7) as (address, refusals):
        environment = commands.environment(tmp_path, AWS_ENDPOINT_URL=address)
        for job in JOBS:
            _run_disturbed(job, remote, f"{bucket}/archive", environment, tmp_path / f"{job}.log")
        assert refusals.refused > 0
    assert commands.prepared(remote) == commands.prepared(local)
    assert commands.trained(remote) == commands.trained(local)
    assert commands.predicted(remote, f"{bucket}/archive") == commands.predicted(local, archive)
    assert commands.reported(remote, f"{bucket}/archive") == commands.reported(local, archive)


# Makes one request to a bucket, and prints the error and the seconds until it was raised.
_REQUEST = """
import json, sys, time
from lungseg import storage
from lungseg.errors import InputError

requests = {"look": storage.exists, "read": storage.read_bytes, "write": lambda path: storage.write_bytes(path, b"1")}
began = time.monotonic()
try:
    message = f"no error but {requests[sys.argv[1]]('s3://hospital/x')!r}"
except InputError as error:
    message = str(error)
json.dump([time.monotonic() - began, message], sys.stdout)
"""


def _silent_port() -> socket.socket:
    """Listen on a port: the system accepts connections, and nothing answers."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(100)
    return server


def _request(kind: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _REQUEST, kind]
    return subprocess.Popen(command, cwd=commands.ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def test_bucket_that_does_not_answer_is_one_line(tmp_path: Path, bucket: str) -> None:
    phantom.write_archive(tmp_path / "archive", 1, size=64)
    with _silent_port() as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        ports = {"silent": silent.getsockname()[1], "closed": closed.getsockname()[1]}
        closed.close()
        far = {
            name: commands.environment(tmp_path, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
            for name, port in ports.items()
        }
        here = commands.environment(tmp_path)
        report = ["jobs/report.py", "study", "--study"]
        prepare = ["jobs/prepare.py", "archive", "--out", str(tmp_path / "out"), "--source"]
        jobs = {
            "silent": ([*report, f"{bucket}/runs"], far["silent"], "the bucket does not answer"),
            "closed": ([*prepare, f"{bucket}/archive"], far["closed"], "the bucket does not answer"),
            "wrong name, read": ([*prepare, "s3://hospitl/archive"], here, "no such folder"),
            "wrong name, written": (
                [*prepare, str(tmp_path / "archive"), "--out", "s3://hospitl/out"],
                here,
                "cannot be written .*Bucket 'hospitl' not found.* check the bucket's name",
            ),
        }
        logs = {name: tmp_path / f"{name}.log" for name in jobs}
        started = {name: commands.start(words, values, logs[name]) for name, (words, values, _) in jobs.items()}
        requests = [_request(kind, values) for values in far.values() for kind in ("look", "read", "write")]
        try:
            for name, (_, _, expected) in jobs.items():
                assert started[name].wait(timeout=200) == 1, logs[name].read_text()
                line = commands.error_line(logs[name].read_text())
                assert re.search(rf"error: s3://hospit[^ ]*: {expected}", line)
            for process in requests:
                seconds, message = json.loads(process.communicate(timeout=200)[0])
                assert re.match(r"s3://hospital/x: (the bucket does not answer|cannot be written) ", message)
                assert seconds < REPORTED_S
        finally:
            for process in (*started.values(), *requests):
                process.kill()
                process.wait()
