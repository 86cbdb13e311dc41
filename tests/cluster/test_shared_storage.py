"""Whether nodes share a folder. The cluster's one node stands for others: a node here is where its tasks run."""

from pathlib import Path
from typing import Any

import pytest
import ray

from lungseg import storage
from lungseg.cluster import shared_storage
from lungseg.errors import InputError, ResourceError


@pytest.fixture
def two_nodes(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Another node beside the driver's: tasks for it run on the driver's. Its description may be changed."""
    (node,) = ray.nodes()
    other = {**node, "NodeID": "0" * 56, "NodeManagerHostname": "far", "NodeManagerAddress": "10.0.0.9"}
    monkeypatch.setattr(ray, "nodes", lambda: [node, other])
    here = node["NodeID"]

    class Here(shared_storage.NodeAffinitySchedulingStrategy):
        def __init__(self, _: str, soft: bool) -> None:
            super().__init__(here, soft=soft)

    monkeypatch.setattr(shared_storage, "NodeAffinitySchedulingStrategy", Here)
    monkeypatch.setattr(shared_storage, "_LOOK_S", 0.3)
    return other


def test_what_all_nodes_see_passes_and_leaves_nothing(two_nodes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("{}")
    shared_storage.require_shared_storage(str(tmp_path / "study"), [str(tmp_path / "data.json")])
    assert list((tmp_path / "study").iterdir()) == []


def test_a_node_that_cannot_read_is_named(
    two_nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = shared_storage._ask

    def elsewhere(node: dict[str, Any], expected: dict[str, str], answer: str, token: str) -> Any:
        if node is two_nodes:
            expected = {path.replace("study", "empty"): digest for path, digest in expected.items()}
        return ask(node, expected, answer, token)

    monkeypatch.setattr(shared_storage, "_ask", elsewhere)
    said = r"node far \(10\.0\.0\.9\) cannot read .*token \(1 of 2 nodes\): pass paths that all nodes share"
    with pytest.raises(ResourceError, match=said):
        shared_storage.require_shared_storage(str(tmp_path / "study"))
    assert list((tmp_path / "study").iterdir()) == []


def test_what_a_node_writes_must_be_seen_here(
    two_nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = shared_storage._ask

    def elsewhere(node: dict[str, Any], expected: dict[str, str], answer: str, token: str) -> Any:
        return ask(node, expected, str(tmp_path / "own") if node is two_nodes else answer, token)

    monkeypatch.setattr(shared_storage, "_ask", elsewhere)
    with pytest.raises(ResourceError, match=r"node far \(10\.0\.0\.9\) wrote .*, which is not seen on "):
        shared_storage.require_shared_storage(str(tmp_path / "study"))


def test_a_node_that_says_nothing_is_named(
    two_nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_storage, "_LOOK_S", 4.0)
    monkeypatch.setattr(shared_storage, "_ANSWER_S", 0.5)
    look = shared_storage._ask

    def slow(node: dict[str, Any], expected: dict[str, str], answer: str, token: str) -> Any:
        if node is two_nodes:
            expected = {str(tmp_path / "nowhere"): ""}
        return look(node, expected, answer, token)

    monkeypatch.setattr(shared_storage, "_ask", slow)
    with pytest.raises(ResourceError, match=r"node far .* gave no answer in 0 s|node far .* gave no answer in 1 s"):
        shared_storage.require_shared_storage(str(tmp_path / "study"))


def test_one_node_is_not_asked(ray_cluster: None, tmp_path: Path) -> None:
    shared_storage.require_shared_storage(str(tmp_path / "study"))
    assert not (tmp_path / "study").exists()


def test_a_node_compares_what_it_reads(tmp_path: Path) -> None:
    path, answer = tmp_path / "file", tmp_path / "answer"
    path.write_text("here")
    expected = {str(path): shared_storage._digest(b"there")}
    with pytest.raises(InputError, match="reads something else in "):
        shared_storage._look(expected, str(answer), "token", 0.0)
    assert not answer.exists()
    shared_storage._look({str(path): shared_storage._digest(b"here")}, str(answer), "token", 0.0)
    assert storage.read_bytes(str(answer)) == b"token"
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write: "):
        shared_storage._look({}, str(tmp_path / "folder"), "token", 0.0)
