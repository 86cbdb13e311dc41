"""What the log says about runs of earlier commands."""

from pathlib import Path

import pytest

from lungseg import provenance, storage
from lungseg.config import OptimSettings, TrainSettings
from lungseg.study import earlier_runs
from lungseg.training.method_digest import method_digest


def _trained(study: Path, name: str, monkeypatch: pytest.MonkeyPatch, code: str = "") -> None:
    with monkeypatch.context() as patch:
        if code:
            patch.setattr(provenance, "code_digest", lambda: code)
        provenance.record_start(str(study / name), {})
    provenance.record_end(str(study / name))


def test_finished_runs_are_dated_and_name_their_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name in ("a", "b"):
        _trained(tmp_path, name, monkeypatch)
    earlier_runs.log_finished(str(tmp_path), ["a", "b"])
    ended = provenance.read(str(tmp_path / "b"))["finished"]
    assert caplog.messages == [f"2 runs finished earlier, last on {ended} UTC with code {provenance.code_digest()}"]


def test_runs_of_other_code_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _trained(tmp_path, "a", monkeypatch, code="0123456789ab")
    _trained(tmp_path, "b", monkeypatch)
    earlier_runs.log_finished(str(tmp_path), ["a", "b"])
    assert caplog.messages == [
        f"1 of them with other code than today's ({provenance.code_digest()}): a; --rerun trains them again"
    ]
    assert earlier_runs.other_code(str(tmp_path), ["a", "b"]) == ["a"]


def test_runs_kept_aside_state_what_differs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = TrainSettings(epochs=50, optim=OptimSettings(lr=1e-3), out="elsewhere")
    storage.write_json(str(tmp_path / "old" / "run.json"), {"settings": before.model_dump()})
    earlier_runs.log_kept_aside(str(tmp_path), ["old"], TrainSettings(epochs=80))
    (message,) = caplog.messages
    assert "1 finished run kept aside, not in the results" in message
    assert "1 with other settings (--optim.lr 0.001, now 0.0001; --epochs 50, now 80);" in message


def test_runs_kept_aside_are_grouped_by_cause(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    same = {"settings": TrainSettings().model_dump()}
    runs = {"a": {**same, "method": "0123456789ab"}, "b": {**same, "method": method_digest()}, "c": {"settings": {}}}
    runs["c"] = {"settings": TrainSettings(epochs=3).model_dump()}
    runs["d"] = runs["c"]
    for name, summary in runs.items():
        storage.write_json(str(tmp_path / name / "run.json"), summary)
    earlier_runs.log_kept_aside(str(tmp_path), list(runs), TrainSettings())
    (message,) = caplog.messages
    assert "4 finished runs kept aside" in message
    assert "2 with other --epochs 3, now 50 (a finished run is not lengthened" in message
    assert "1 with another method (" in message
    assert f"0123456789ab, now {method_digest()})" in message
    assert "1 with other data or other custom code" in message
