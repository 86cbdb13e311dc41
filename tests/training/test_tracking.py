"""metrics.jsonl, and its copy in W&B, whose failures never stop training."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb

from lungseg import storage
from lungseg.config import LoaderSettings, ModelSettings, TrainSettings, WandbSettings
from lungseg.dataset import catalog
from lungseg.dataset.folds import RunPlan
from lungseg.errors import InputError
from lungseg.training import run_loop, run_state, tracking
from lungseg.training.run import Run
from lungseg.training.tracking import MetricsLog, TrackedImage, WandbMirror, log_study

OFFLINE, DISABLED = WandbSettings(mode="offline"), WandbSettings(mode="disabled")


def row(epoch: int, loss: float = 0.5) -> dict[str, Any]:
    return {"run": "pooled-fold0", "epoch": epoch, "loss": loss}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_epoch_is_written_immediately(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    log = MetricsLog(str(path), 0)
    assert not path.exists()
    for epoch in (1, 2, 3):
        log.add(row(epoch))
        assert lines(path) == [row(n) for n in range(1, epoch + 1)]
    assert path.read_bytes().endswith(b"}\n")


def test_restart_appends_to_the_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsLog(str(path), 0)
    first.add(row(1))
    first.add(row(2))
    second = MetricsLog(str(path), 2)
    second.add(row(3))
    assert lines(path) == second.rows == [row(1), row(2), row(3)]


def test_repeated_epoch_replaces_its_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsLog(str(path), 0)
    for epoch in (1, 2):
        first.add(row(epoch))
    for loss in (0.3, 0.2):  # killed twice between its line and its checkpoint
        reopened = MetricsLog(str(path), 1)
        assert reopened.rows == [row(1)]
        reopened.add(row(2, loss))
    assert lines(path) == [row(1), row(2, 0.2)]


def test_opening_the_log_changes_nothing_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsLog(str(path), 0)
    first.add(row(1))
    first.add(row(2))
    MetricsLog(str(path), 0)
    assert lines(path) == [row(1), row(2)]


def test_failed_write_keeps_the_earlier_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(str(path), 0)
    log.add(row(1))

    def fail(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="no space left"):
        log.add(row(2))
    assert lines(path) == [row(1)]
    assert [child.name for child in tmp_path.iterdir()] == ["metrics.jsonl"]


class FakeRun:
    """Replaces the run that wandb.init returns and records its calls; the method `broken` raises."""

    def __init__(self, broken: str = "", error: Exception | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._broken, self._error = broken, error or wandb.errors.CommError("the server is gone")
        self.summary = self

    def _do(self, method: str, value: Any) -> None:
        self.calls.append((method, value))
        if method == self._broken:
            raise self._error

    def log(self, values: dict[str, Any], step: int) -> None:
        self._do("log", (values, step))

    def update(self, values: dict[str, Any]) -> None:
        self._do("summary", values)

    def finish(self, exit_code: int) -> None:
        self._do("finish", exit_code)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without an API key."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return folder


def replace_init(monkeypatch: pytest.MonkeyPatch, answer: FakeRun | Exception) -> list[dict[str, Any]]:
    """Replace wandb.init and return the list of its arguments."""
    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> FakeRun:
        calls.append(arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(wandb, "init", init)
    return calls


def mirror(settings: WandbSettings, folder: Path) -> WandbMirror:
    return WandbMirror(settings, "study", "pooled-fold0-1234", str(folder), {"epochs": 3})


def test_disabled_starts_nothing_and_takes_everything(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = replace_init(monkeypatch, FakeRun())
    with mirror(DISABLED, tmp_path / "run") as disabled:
        disabled.log_epoch(row(1))
        disabled.set_summary({"dice": 0.9})
    assert calls == []
    assert not (tmp_path / "run").exists()


def test_every_start_resumes_the_same_wandb_run(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = replace_init(monkeypatch, FakeRun())
    for folder in (tmp_path / "one", tmp_path / "one", tmp_path / "other"):
        mirror(OFFLINE, folder)
    first, again, other = calls
    assert first["group"] == "study"
    assert first["name"] == "pooled-fold0-1234"
    assert first["resume"] == "allow"
    assert first["config"] == {"epochs": 3}
    assert first["project"] == "lungseg"
    assert first["dir"] == str(tmp_path / "one")
    assert first["id"] == again["id"] != other["id"]


def test_epochs_and_summary_are_logged_and_the_run_ends(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun()
    replace_init(monkeypatch, run)
    with mirror(OFFLINE, tmp_path) as online:
        online.log_epoch(row(1))
        online.set_summary({"dice": 0.9})
    assert run.calls == [("log", (row(1), 1)), ("summary", {"dice": 0.9}), ("finish", 0)]


def test_failed_run_is_marked_and_its_error_raised(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    replace_init(monkeypatch, run)
    with pytest.raises(KeyError, match="a bug"), mirror(OFFLINE, tmp_path):
        raise KeyError("a bug")
    assert run.calls == [("finish", 1)]


@pytest.mark.parametrize(
    "error",
    [wandb.errors.CommError("no server"), wandb.errors.UsageError("no key"), OSError("read-only"), ValueError("mode")],
    ids=lambda error: type(error).__name__,
)
def test_failed_start_is_logged_and_training_continues(
    error: Exception,
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    replace_init(monkeypatch, error)
    with caplog.at_level(logging.WARNING), mirror(OFFLINE, tmp_path) as broken:
        broken.log_epoch(row(1))
        broken.set_summary({"dice": 0.9})
    assert str(error) in caplog.text
    assert "metrics.jsonl" in caplog.text


def test_unreachable_server_falls_back_to_offline(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    modes, answer = [], FakeRun()

    def init(**arguments: Any) -> FakeRun:
        modes.append(arguments["mode"])
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("no server")
        return answer

    monkeypatch.setattr(wandb, "init", init)
    with caplog.at_level(logging.WARNING), mirror(WandbSettings(), tmp_path) as fallen:
        fallen.log_epoch(row(1))
    assert modes == ["online", "offline"]
    assert [name for name, _ in answer.calls] == ["log", "finish"]
    assert "W&B could not start online (CommError: no server)" in caplog.text
    modes.clear()
    with mirror(WandbSettings(mode="online"), tmp_path):
        assert modes == ["online"]


@pytest.mark.parametrize("broken", ["log", "summary", "finish"])
def test_later_failure_is_logged_once_and_training_continues(
    broken: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = FakeRun(broken)
    replace_init(monkeypatch, run)
    with caplog.at_level(logging.WARNING), mirror(OFFLINE, tmp_path) as mirrored:
        mirrored.log_epoch(row(1))
        mirrored.log_epoch(row(2))
        mirrored.set_summary({"dice": 0.9})
    assert [kind for kind, _ in run.calls].count(broken) == 1
    assert len([record for record in caplog.records if "the server is gone" in record.message]) == 1
    assert run.calls[-1][0] == broken  # no further calls after a failure


def test_unusable_folder_is_logged_and_training_continues(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = replace_init(monkeypatch, FakeRun())
    (tmp_path / "run").write_text("a file, not a folder")
    with caplog.at_level(logging.WARNING), mirror(OFFLINE, tmp_path / "run") as broken:
        broken.log_epoch(row(1))
    assert calls == []
    assert "W&B could not start" in caplog.text


def test_wandb_folder_of_bucket_runs_is_the_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = replace_init(monkeypatch, FakeRun())
    WandbMirror(OFFLINE, "study", "run", "s3://bucket/runs/study/run", {})
    assert calls[0]["dir"] == str(home / ".cache" / "lungseg" / "wandb")
    assert Path(calls[0]["dir"]).is_dir()


@pytest.mark.parametrize(
    ("chosen", "environment", "netrc", "expected"),
    [
        ("auto", {}, "", "offline"),
        ("auto", {"WANDB_API_KEY": ""}, "", "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "", "online"),
        ("auto", {}, "machine api.wandb.ai login user password k", "online"),
        ("auto", {}, "machine example.org login user password k", "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "", "offline"),
        ("online", {"WANDB_MODE": "offline"}, "", "online"),
        ("offline", {"WANDB_API_KEY": "k", "WANDB_MODE": "online"}, "", "offline"),
    ],
)
def test_mode_follows_settings_environment_and_key(
    chosen: Any,
    environment: dict[str, str],
    netrc: str,
    expected: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (home / ".netrc").write_text(netrc)
    calls = replace_init(monkeypatch, FakeRun())
    mirror(WandbSettings(mode=chosen), home)
    assert [arguments["mode"] for arguments in calls] == [expected]


def test_wandb_mode_disabled_starts_nothing(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    calls = replace_init(monkeypatch, FakeRun())
    mirror(WandbSettings(), tmp_path)
    assert calls == []


def test_real_wandb_writes_an_offline_run(tmp_path: Path, home: Path) -> None:
    with mirror(WandbSettings(), tmp_path / "run") as offline:
        offline.log_epoch(row(1))
        offline.set_summary({"dice": 0.9})
    name = storage.digest(["study", str(tmp_path / "run")])
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    values, deadline = (b"pooled-fold0-1234", b"study", b"loss", b"dice"), time.monotonic() + 60
    written = b""
    while not all(value in written for value in values):  # W&B writes it in another process
        assert time.monotonic() < deadline, written
        time.sleep(0.05)
        written = (folder / f"run-{name}.wandb").read_bytes()


def records_of(path: Path) -> list[Any]:
    """Return the records of an offline run, once W&B's process has written the last one."""
    deadline = time.monotonic() + 60
    while True:
        records = records_so_far(path)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < deadline, records
        time.sleep(0.05)


def records_so_far(path: Path) -> list[Any]:
    """Return the records written so far: 7 bytes, then blocks of 32 KiB in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    content, position, records, parts = path.read_bytes(), 7, [], b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # no room for a header: zeros up to the next block
            position += 32768 - position % 32768
            continue
        size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        if position + 7 + size > len(content):
            break  # incomplete record
        parts += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a full record, or its last fragment
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def test_offline_run_equals_metrics_jsonl(prepared: Path, tmp_path: Path, home: Path) -> None:
    settings = TrainSettings(
        study="first",
        folds=3,
        epochs=3,
        model=ModelSettings(encoder="tu-test_efficientnet", weights="none"),
        loader=LoaderSettings(batch_size=2),
        wandb=WandbSettings(mode="offline"),
    )
    plan = RunPlan("pooled", ("north", "south"), 0, 3, 0)
    folder = tmp_path / "first" / "pooled-fold0-1234"
    run = Run(settings, plan, tuple(catalog.find_datasets([str(prepared)])), folder.name, str(folder))
    summary = run_loop.finish(run_state.start(run, torch.device("cpu")), lambda _: None)
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    records = records_of(path)
    (run_record,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert run_record.run_group == "first"
    assert run_record.display_name == "pooled-fold0-1234"
    assert run_record.run_id == storage.digest(["first", str(folder)])
    assert run_record.job_type == "train"
    config = {update.key: json.loads(update.value_json) for update in run_record.config.update}
    expected = json.loads(settings.model_dump_json())
    assert {name: config[name] for name in expected} == expected
    history = [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    own = [{name: value for name, value in row.items() if not name.startswith("_")} for row in history]
    assert own == lines(folder / "metrics.jsonl")
    assert len(own) == 3
    last = {
        update.key: json.loads(update.value_json)
        for record in records
        if record.WhichOneof("record_type") == "summary"
        for update in record.summary.update
    }
    assert last["threshold"] == summary["threshold"]
    assert last["run"] == "pooled-fold0-1234"
    assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [0]


def test_study_table_is_logged_as_a_summary_run(tmp_path: Path, home: Path) -> None:
    table_content = (["trained on", "a"], [["a (pooled)", "0.962 [0.958, 0.966]*"]])
    for _ in range(2):
        log_study(WandbSettings(), str(tmp_path / "first"), table_content, {"held_out_dice": 0.9})
    files = sorted((tmp_path / "first" / "wandb").glob("offline-run-*/*.wandb"))
    assert {path.name for path in files} == {f"run-{storage.digest(['first', str(tmp_path / 'first')])}.wandb"}
    records = records_of(files[0])
    (run_record,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run_record.run_group, run_record.display_name, run_record.job_type) == ("first", "summary", "summary")
    media = {path.name.split("_0_")[0]: path for path in files[0].parent.glob("files/media/*/*")}
    table = json.loads(media["matrix"].read_text())
    assert (table["columns"], table["data"]) == table_content
    assert set(media) == {"matrix"}


SWEEP = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "trial1"}


def test_runs_of_a_study_stay_outside_a_sweep(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks inherit the sweep's variables; the runs of the folds would write into one W&B run."""
    for name, value in SWEEP.items():
        monkeypatch.setenv(name, value)
    seen: list[tuple[str | None, dict[str, Any]]] = []

    def init(**arguments: Any) -> FakeRun:
        seen.append((os.environ.get("WANDB_SWEEP_ID"), arguments))
        return FakeRun()

    monkeypatch.setattr(wandb, "init", init)
    mirror(OFFLINE, tmp_path / "run")
    log_study(OFFLINE, str(tmp_path / "first"), (["trained on"], []), {"held_out_dice": 0.9})
    (own_sweep, of_fold), (sweep, of_study) = seen
    assert own_sweep is None
    assert of_fold["id"] == storage.digest(["study", str(tmp_path / "run")])
    assert sweep == "sweep1"
    assert of_study.keys().isdisjoint({"id", "project"})
    assert os.environ["WANDB_RUN_ID"] == "trial1"


def test_study_is_the_trial_of_a_sweep(tmp_path: Path, home: Path) -> None:
    """In a process of its own, as an agent starts it: W&B reads the sweep's variables once."""
    code = (
        "from lungseg.config import WandbSettings; from lungseg.training.tracking import log_study; "
        f"log_study(WandbSettings(), {str(tmp_path / 'first')!r}, (['trained on'], [['a']]), {{'held_out_dice': 0.9}})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **SWEEP}, timeout=200)
    (path,) = (tmp_path / "first" / "wandb").glob("offline-run-*/*.wandb")
    assert path.name == "run-trial1.wandb"
    records = records_of(path)
    (run_record,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert run_record.sweep_id == "sweep1"
    summaries = [item for record in records for item in record.summary.update]
    assert {"held_out_dice": "0.9"}.items() <= {item.key: item.value_json for item in summaries}.items()


def test_enabled_images_and_artifacts_are_logged(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = tmp_path / "run" / "checkpoint" / "epoch-0001" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    images = [np.full((16, 16), value, np.uint8) for value in (50, 99)]
    masks = [np.pad(np.ones((8, size), np.uint8), ((4, 4), (0, 16 - size))) for size in (3, 5, 7)]
    settings = WandbSettings(mode="offline", artifact=True, images=2)
    with mirror(settings, tmp_path / "run") as wandb_run:
        wandb_run.log_images(
            [
                TrackedImage("a/1", images[0], masks[0][None], masks[1][None]),
                TrackedImage("a/2", images[1], None, masks[2][None]),
            ]
        )
        wandb_run.log_artifact("pooled-fold0", str(weights.parent))
        wandb_run.log_artifact("pooled-fold0", "s3://bucket/runs/checkpoint")
    assert "s3://bucket/runs/checkpoint, because it is in a bucket" in caplog.text
    assert "W&B stopped" not in caplog.text
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert len(list(path.parent.glob("files/media/images/*.png"))) == 2
    assert len(list(path.parent.glob("files/media/images/mask/*.png"))) == 3
    artifacts = [record.artifact for record in records_of(path) if record.WhichOneof("record_type") == "artifact"]
    assert [(artifact.name, artifact.type) for artifact in artifacts] == [("pooled-fold0", "model")]


def test_images_and_artifacts_are_off_by_default(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    replace_init(monkeypatch, run)
    with mirror(OFFLINE, tmp_path) as silent:
        silent.log_images([])
        silent.log_artifact("pooled-fold0", str(tmp_path))
    assert run.calls == [("finish", 0)]


def test_slow_upload_does_not_delay_the_end(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(FakeRun):
        def finish(self, exit_code: int) -> None:
            time.sleep(20 + exit_code)

    monkeypatch.setattr(tracking, "_FINISH_S", 0.2)
    monkeypatch.setattr(tracking, "_GRACE_S", 0.1)
    calls = replace_init(monkeypatch, Slow())
    began = time.monotonic()
    with mirror(OFFLINE, tmp_path):
        pass
    assert time.monotonic() - began < 10
    assert "W&B did not finish its uploads within 0 s" in caplog.text
    assert calls[0]["settings"].finish_timeout == 0.2


def test_invalid_mode_is_logged_and_training_continues(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with caplog.at_level(logging.WARNING), mirror(WandbSettings(), tmp_path) as broken:
        broken.log_epoch(row(1))
    assert "W&B could not start" in caplog.text


def test_the_command_to_sync_offline_runs_is_named(tmp_path: Path, home: Path) -> None:
    study = tmp_path / "my runs" / "first"
    assert tracking.sync_command(str(study)) == tracking.sync_command("s3://bucket/runs/first") == ""
    (study / "pooled-fold0" / "wandb" / "offline-run-1").mkdir(parents=True)
    assert tracking.sync_command(str(study)) == f"wandb sync '{study}'/*/wandb/offline-run-*"
    (study / "wandb" / "offline-run-2").mkdir(parents=True)
    both = f"'{study}'/wandb/offline-run-* '{study}'/*/wandb/offline-run-*"
    assert tracking.sync_command(str(study)) == f"wandb sync {both}"
    (study / "pooled-fold1" / "wandb" / "offline-run-3").mkdir(parents=True)
    one = f"'{study}'/wandb/offline-run-* '{study}'/pooled-fold1/wandb/offline-run-*"
    assert tracking.sync_command(str(study), ["pooled-fold0", "pooled-fold7"]) == f"wandb sync {one}"
    (home / ".cache" / "lungseg" / "wandb" / "wandb" / "offline-run-4").mkdir(parents=True)
    assert tracking.sync_command("s3://bucket/runs/first") == f"wandb sync {home}/.cache/lungseg/*/wandb/offline-run-*"
