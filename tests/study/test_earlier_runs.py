"""What the log says about runs of earlier commands."""

from pathlib import Path

import pytest

from lungseg import provenance, storage
from lungseg.config import LoaderSettings, LossSettings, OptimSettings, TrainSettings
from lungseg.model.custom_code import source_digests
from lungseg.study import earlier_runs
from lungseg.training.method_digest import method_digest


class Kept:
    """A loss of the user, which `--loss.custom` names."""


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
    assert caplog.messages == [f"2 runs finished earlier, last on {ended} with code {provenance.code_digest()}"]


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
    earlier_runs.log_kept_aside(str(tmp_path), ["old"], TrainSettings(epochs=80), {})
    assert caplog.messages == [
        "1 finished run kept aside, not in the results: 1 with other settings (--optim.lr 0.001, now 0.0001; --epochs "
        f"50, now 80) and another method (digest of network, loss, augmentation and steps unknown, now "
        f"{method_digest()}). To see them again, restore what has changed and repeat the command; to keep both, pass "
        "another --study"
    ]


def test_settings_that_do_not_define_a_run_are_no_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolved = TrainSettings(loader=LoaderSettings(processes=3, batch_size=8, cache_mib=9), save_minutes=7, rerun=True)
    now = TrainSettings(loss=LossSettings(custom=f"{__name__}:Kept"))
    before = {**resolved.model_dump(), "loss": now.loss.model_dump()}
    del before["half_size_epochs"]  # as an earlier version
    code = {"custom_code": {now.loss.custom: "5fb4c148acae"}, "method": method_digest()}
    storage.write_json(str(tmp_path / "old" / "run.json"), {"settings": before, **code})
    earlier_runs.log_kept_aside(str(tmp_path), ["old"], now, {})
    digest = source_digests(now)[now.loss.custom]
    cause = f"1 with another source file of {now.loss.custom} (5fb4c148acae, now {digest}). To see"
    assert f"not in the results: {cause}" in caplog.messages[0]


def test_runs_kept_aside_are_grouped_by_cause(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    same = {"settings": TrainSettings().model_dump()}
    this = {"method": method_digest()}
    runs = {"a": {**same, "method": "0123456789ab"}, "b": {**same, **this, "data": {"north": "1", "south": "2"}}}
    runs["c"] = {"settings": TrainSettings(epochs=3).model_dump(), **this}
    runs["d"] = runs["c"]
    for name, summary in runs.items():
        storage.write_json(str(tmp_path / name / "run.json"), summary)
    earlier_runs.log_kept_aside(str(tmp_path), ["a", "b", "c", "d"], TrainSettings(), {"south": "3"})
    (message,) = caplog.messages
    assert "4 finished runs kept aside" in message
    assert "2 with other --epochs 3, now 50 (a finished run is not lengthened" in message
    assert "1 with another method (" in message
    assert f"0123456789ab, now {method_digest()})" in message
    assert "1 with other data (north, south)" in message
