"""What is recorded about the origin of a run."""

import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from lungseg import provenance


def test_every_start_and_the_end_are_recorded(tmp_path: Path) -> None:
    assert provenance.read(str(tmp_path)) == {}
    for command in ("first", "second"):
        provenance.record_start(str(tmp_path), {"command": command})
    assert provenance.read(str(tmp_path))["finished"] is None
    provenance.record_end(str(tmp_path))
    recorded = provenance.read(str(tmp_path))
    assert [start["command"] for start in recorded["starts"]] == ["first", "second"]
    assert datetime.fromisoformat(recorded["finished"]).utcoffset() == timedelta(0)
    assert recorded["finished"] >= recorded["starts"][1]["time"] >= recorded["starts"][0]["time"]
    assert recorded["starts"][0]["code"] == provenance.code_digest()
    assert {"lungseg", "python", "torch", "ray"} <= recorded["starts"][0]["versions"].keys()


def test_git_state_names_the_commit_and_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path)
    assert provenance.git_state() == {}
    words = ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "x")
    (tmp_path / "a.py").write_text("1")
    for command in (("init", "--quiet"), ("add", "a.py"), words):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    state = provenance.git_state()
    assert len(state["commit"]) == 40
    assert state["uncommitted_changes"] is False
    (tmp_path / "a.py").write_text("2")
    assert provenance.git_state() == {**state, "uncommitted_changes": True}


def test_without_git_there_is_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state() == {}
