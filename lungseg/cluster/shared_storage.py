"""Whether every node of the cluster sees the folders that a job reads and writes: asked before any work."""

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

_LOOK_S = 10.0  # a network file system shows another machine's file after a while
_TRIED = 8  # files of an archive
_ANSWER_S = 120.0  # a node's first task starts a process there, which may have to fetch an environment

Node = dict[str, Any]


def require_shared_storage(folder: str, read: Sequence[str] = (), archive: Sequence[str] = ()) -> None:
    """Let every node that may get work read and write below `folder`, and read the files `read`; one node needs no ask.

    The driver writes a token, each node answers with a file of its own. archive: files some of which may be broken: the
    first that the driver can read is asked for.

    Raises:
        ResourceError: a node cannot; the error names it.

    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]  # type: ignore[no-untyped-call]
    here = ray.get_runtime_context().get_node_id()
    if {node["NodeID"] for node in nodes} <= {here}:
        return
    probe, token = storage.join(folder, f".shared-{uuid.uuid4().hex[:12]}"), uuid.uuid4().hex
    storage.write_bytes(storage.join(probe, "token"), token.encode())
    try:
        wanted = (storage.join(probe, "token"), *read, *_first_readable(archive))
        expected = {path: _digest(storage.read_bytes(path)) for path in wanted}
        asked = {_ask(node, expected, storage.join(probe, node["NodeID"]), token): node for node in nodes}
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
        wrong = {_name(asked[one]): f"gave no answer in {_ANSWER_S:.0f} s" for one in silent}
        for one in answered:
            said = _said(one) or _unseen(storage.join(probe, asked[one]["NodeID"]), token)
            if said:
                wrong[_name(asked[one])] = said
    finally:
        storage.delete(probe)
    if wrong:
        node, said = min(wrong.items())
        raise ResourceError(
            f"node {node} {said} ({len(wrong)} of {len(nodes)} nodes): pass paths that all nodes share, as a network "
            "file system's or s3://"
        )


def _first_readable(paths: Sequence[str]) -> list[str]:
    return [path for path in paths[:_TRIED] if _read(path) is not None][:1]


def _ask(node: Node, expected: dict[str, str], answer: str, token: str) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(_try_look).options(num_cpus=0, max_retries=1, scheduling_strategy=strategy)
    return task.remote(expected, answer, token, _LOOK_S)


def _try_look(*args: Any) -> TaskResult:
    return TaskResult.of(_look, *args)


def _look(expected: dict[str, str], answer: str, token: str, patience: float) -> None:
    """Compare files with their digests, on a node, and write an answer.

    Raises:
        InputError: a file cannot be read or differs, or the answer cannot be written.

    """
    until = time.monotonic() + patience
    for path, digest in expected.items():
        while (found := _read(path)) is None or _digest(found) != digest:
            if time.monotonic() > until:
                raise InputError(f"cannot read {path}" if found is None else f"reads something else in {path}")
            time.sleep(0.2)
    try:
        storage.write_bytes(answer, token.encode())
    except InputError as error:
        raise InputError(f"cannot write: {error}") from None


def _said(answer: Any) -> str:
    try:
        return str(ray.get(answer).error or "")
    except ray.exceptions.RayError as error:
        return f"cannot run a task: {first_line(error)}"


def _unseen(answer: str, token: str) -> str:
    """Say so where this machine does not see what a node wrote."""
    until = time.monotonic() + _LOOK_S
    while _read(answer) != token.encode():
        if time.monotonic() > until:
            return f"wrote {answer}, which is not seen on {socket.gethostname()}"
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
