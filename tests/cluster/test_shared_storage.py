"""Checks for shared folders. The one node of the cluster runs the tasks of all nodes in these tests."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import ray

from lungseg import storage
from lungseg.cluster import shared_storage
from lungseg.errors import InputError, ResourceError


@pytest.fixture
def two_nodes(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Add a second node, whose tasks run on the driver node; return its description."""
    (node,) = ray.nodes()
    other = {**node, "NodeID": "0" * 56, "NodeManagerHostname": "far", "NodeManagerAddress": "10.0.0.9"}
    monkeypatch.setattr(ray, "nodes", lambda: [node, other])
    here = node["NodeID"]

    class Here(shared_storage.NodeAffinitySchedulingStrategy):
        def __init__(self, _: str, soft: bool) -> None:
            super().__init__(here, soft=soft)

    monkeypatch.setattr(shared_storage, "NodeAffinitySchedulingStrategy", Here)
    monkeypatch.setattr(shared_storage, "VISIBLE_TIMEOUT_S", 0.3)
    return other


def test_shared_folder_passes_and_no_files_remain(two_nodes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("{}")
    shared_storage.require_shared_storage(str(tmp_path / "study"), [str(tmp_path / "data.json")])
    assert list((tmp_path / "study").iterdir()) == []


def test_node_that_cannot_read_is_named(
    two_nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = shared_storage.start_check

    def elsewhere(node: dict[str, Any], expected: dict[str, str], answer: str, token: str) -> Any:
        if node is two_nodes:
            expected = {path.replace("study", "empty"): digest for path, digest in expected.items()}
        return ask(node, expected, answer, token)

    monkeypatch.setattr(shared_storage, "start_check", elsewhere)
    message = r"node far \(10\.0\.0\.9\) cannot read .*token \(1 of 2 nodes\): pass paths that all nodes share"
    with pytest.raises(ResourceError, match=message):
        shared_storage.require_shared_storage(str(tmp_path / "study"))
    assert list((tmp_path / "study").iterdir()) == []


def test_invisible_file_of_a_node_is_refused(
    two_nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = shared_storage.start_check

    def elsewhere(node: dict[str, Any], expected: dict[str, str], answer: str, token: str) -> Any:
        return ask(node, expected, str(tmp_path / "own") if node is two_nodes else answer, token)

    monkeypatch.setattr(shared_storage, "start_check", elsewhere)
    with pytest.raises(ResourceError, match=r"node far \(10\.0\.0\.9\) wrote .*, which is not visible on "):
        shared_storage.require_shared_storage(str(tmp_path / "study"))


def test_node_without_answer_is_named(
    two_nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_storage, "VISIBLE_TIMEOUT_S", 4.0)
    monkeypatch.setattr(shared_storage, "ANSWER_TIMEOUT_S", 0.5)
    look = shared_storage.start_check

    def slow(node: dict[str, Any], expected: dict[str, str], answer: str, token: str) -> Any:
        if node is two_nodes:
            expected = {str(tmp_path / "nowhere"): ""}
        return look(node, expected, answer, token)

    monkeypatch.setattr(shared_storage, "start_check", slow)
    with pytest.raises(ResourceError, match=r"node far .* gave no answer in 0 s|node far .* gave no answer in 1 s"):
        shared_storage.require_shared_storage(str(tmp_path / "study"))


def test_single_node_is_not_checked(ray_cluster: None, tmp_path: Path) -> None:
    shared_storage.require_shared_storage(str(tmp_path / "study"))
    assert not (tmp_path / "study").exists()


def test_node_compares_file_contents(tmp_path: Path) -> None:
    path, answer = tmp_path / "file", tmp_path / "answer"
    path.write_text("here")
    expected = {str(path): hashlib.sha256(b"there").hexdigest()}
    with pytest.raises(InputError, match="reads other content in "):
        shared_storage.check_files(expected, str(answer), "token", 0.0)
    assert not answer.exists()
    shared_storage.check_files({str(path): hashlib.sha256(b"here").hexdigest()}, str(answer), "token", 0.0)
    assert storage.read_bytes(str(answer)) == b"token"
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write: "):
        shared_storage.check_files({}, str(tmp_path / "folder"), "token", 0.0)
