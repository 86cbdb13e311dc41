"""Check before any work that every node sees the folders that a job reads and writes."""

import hashlib
import socket
import time
import uuid
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lungseg import storage
from lungseg.errors import InputError, ResourceError, TaskResult, first_line

VISIBLE_TIMEOUT_S = 10.0
"""A network file system may show a new file of another machine late."""
ANSWER_TIMEOUT_S = 120.0
"""The first task of a node starts a process, which may have to install an environment."""
_MAX_ARCHIVE_FILES = 8  # to try

Node = dict[str, Any]


def require_shared_storage(folder: str, read: Sequence[str] = (), archive: Sequence[str] = ()) -> None:
    """Check that every node with CPUs can write below `folder` and read the files `read`; skipped for one node.

    The driver writes a token, and each node answers with a file. archive: files that may be damaged; only the first one
    that the driver can read is checked.

    Raises:
        ResourceError: a node cannot; the message names it.

    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]  # type: ignore[no-untyped-call]
    driver_node = ray.get_runtime_context().get_node_id()
    if {node["NodeID"] for node in nodes} <= {driver_node}:
        return
    probe, token = storage.join(folder, f".shared-{uuid.uuid4().hex[:12]}"), uuid.uuid4().hex
    storage.write_bytes(storage.join(probe, "token"), token.encode())
    try:
        wanted = (storage.join(probe, "token"), *read, *_first_readable(archive))
        expected = {path: _digest(storage.read_bytes(path)) for path in wanted}
        tasks = {start_check(node, expected, storage.join(probe, node["NodeID"]), token): node for node in nodes}
        finished, pending = ray.wait(list(tasks), num_returns=len(tasks), timeout=ANSWER_TIMEOUT_S)
        problems = {_name(tasks[task]): f"gave no answer in {ANSWER_TIMEOUT_S:.0f} s" for task in pending}
        for task in finished:
            problem = _task_problem(task) or _answer_problem(storage.join(probe, tasks[task]["NodeID"]), token)
            if problem:
                problems[_name(tasks[task])] = problem
    finally:
        storage.delete(probe)
    if problems:
        name, problem = min(problems.items())
        raise ResourceError(
            f"node {name} {problem} ({len(problems)} of {len(nodes)} nodes): pass paths that all nodes share, such as "
            "a network file system or s3://"
        )


def _first_readable(paths: Sequence[str]) -> list[str]:
    return [path for path in paths[:_MAX_ARCHIVE_FILES] if _read(path) is not None][:1]


def start_check(node: Node, expected: dict[str, str], answer: str, token: str) -> Any:
    """Start `check_files` on a node; return the reference of its `TaskResult`."""
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(_run_check).options(num_cpus=0, max_retries=1, scheduling_strategy=strategy)
    return task.remote(expected, answer, token, VISIBLE_TIMEOUT_S)


def _run_check(*args: Any) -> TaskResult:
    return TaskResult.of(check_files, *args)


def check_files(expected: dict[str, str], answer: str, token: str, timeout_s: float) -> None:
    """Compare files with their digests and write the answer. Runs on each node.

    Raises:
        InputError: a file cannot be read or differs, or the answer cannot be written.

    """
    deadline = time.monotonic() + timeout_s
    for path, digest in expected.items():
        while (content := _read(path)) is None or _digest(content) != digest:
            if time.monotonic() > deadline:
                raise InputError(f"cannot read {path}" if content is None else f"reads other content in {path}")
            time.sleep(0.2)
    try:
        storage.write_bytes(answer, token.encode())
    except InputError as error:
        raise InputError(f"cannot write: {error}") from None


def _task_problem(task: Any) -> str:
    try:
        return str(ray.get(task).error or "")
    except ray.exceptions.RayError as error:
        return f"cannot run a task: {first_line(error)}"


def _answer_problem(answer: str, token: str) -> str:
    """Return a message if this machine does not see the answer of a node."""
    deadline = time.monotonic() + VISIBLE_TIMEOUT_S
    while _read(answer) != token.encode():
        if time.monotonic() > deadline:
            return f"wrote {answer}, which is not visible on {socket.gethostname()}"
        time.sleep(0.2)
    return ""


def _read(path: str) -> bytes | None:
    try:
        return storage.read_bytes(path)
    except InputError:
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _name(node: Node) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
