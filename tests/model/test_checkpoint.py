"""Checkpoints load unchanged; incomplete, damaged or malicious ones are refused."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from lungseg import storage
from lungseg.config import ModelSettings, PreprocessSettings
from lungseg.errors import CheckpointError, InputError
from lungseg.model import checkpoint
from lungseg.model.checkpoint_io import Snapshot, load_model, load_state, save
from lungseg.model.network import LungNetwork, build_network
from lungseg.schema import SCHEMA
from lungseg.storage import json_files, tables

torch.set_num_threads(1)  # two threads are ten times slower on a busy machine

SMALL = ModelSettings(encoder="tu-test_efficientnet", weights="none")
FILES = ("model.safetensors", "state.pt", "trained_on.parquet")
TRAINED_ON = pa.table(
    {"image_id": ["a", "b"], "dataset": ["north", "north"], "pixel_digest": ["11", "22"]},
).replace_schema_metadata({"lungseg.schema": str(SCHEMA)})


def adam(model: LungNetwork) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)


def step(model: LungNetwork, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    torch.manual_seed(9)  # dropout
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()


def config(epoch: int, step: int = 0) -> dict[str, Any]:
    preprocess = PreprocessSettings(size=64, histogram="clahe")
    return {
        "run": "pooled-fold0",
        "epoch": epoch,
        "step": step,
        "preprocess": preprocess.model_dump(),
        "settings": {"model": SMALL.model_dump()},
    }


def snapshot(model: LungNetwork, optimizer: torch.optim.Optimizer, epoch: int = 1, step: int = 0) -> Snapshot:
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    state = {"optimizer": optimizer.state_dict(), "sums": (1.5, 2), "best": None}
    return Snapshot(weights, state, config(epoch, step), storage.table_bytes(TRAINED_ON))


def with_other_weights(content: Snapshot) -> Snapshot:
    return replace(content, weights={name: value + 1 for name, value in content.weights.items()})


@pytest.fixture(scope="module")
def trained() -> tuple[LungNetwork, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = build_network(SMALL)
    optimizer = adam(model)
    step(model, optimizer)
    return model, optimizer


@pytest.fixture(scope="module")
def saved(trained: tuple[LungNetwork, torch.optim.Optimizer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint, epoch-0001; tests only read it."""
    folder = tmp_path_factory.mktemp("saved")
    save(str(folder), snapshot(*trained))
    return folder


@pytest.fixture
def checkpoints(saved: Path, tmp_path: Path) -> Path:
    """A copy of it as the checkpoint folder of a run; tests may change it."""
    shutil.copytree(saved, tmp_path / "run" / "checkpoint")
    return tmp_path / "run" / "checkpoint"


def second(checkpoints: Path) -> Path:
    """Add a newer checkpoint, as after a kill before the older one is deleted."""
    shutil.copytree(checkpoints / "epoch-0001", checkpoints / "epoch-0002")
    _change_config(checkpoints / "epoch-0002", epoch=2)
    return checkpoints / "epoch-0002"


def _change_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def test_checkpoint_describes_its_model(saved: Path) -> None:
    loaded = checkpoint.verify(str(saved / "epoch-0001"))
    assert loaded.epoch == 1
    assert loaded.preprocess == PreprocessSettings(size=64, histogram="clahe")
    assert loaded.config["run"] == "pooled-fold0"
    assert loaded.config["schema"] == SCHEMA
    weights = (saved / "epoch-0001" / "model.safetensors").read_bytes()
    assert loaded.digest == hashlib.sha256(weights).hexdigest()[:16]
    assert checkpoint.trained_on(loaded) == {"11", "22"}
    assert {path.name for path in (saved / "epoch-0001").iterdir()} == {*FILES, "config.json"}


def test_loaded_weights_are_bitwise_equal(saved: Path, trained: tuple[LungNetwork, torch.optim.Optimizer]) -> None:
    torch.manual_seed(77)  # different initial weights
    weights = load_model(checkpoint.verify(str(saved / "epoch-0001"))).state_dict()
    expected = trained[0].state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert all(weights[name].dtype == expected[name].dtype for name in expected)


def test_resumed_optimizer_is_bitwise_equal(saved: Path, trained: tuple[LungNetwork, torch.optim.Optimizer]) -> None:
    loaded = checkpoint.verify(str(saved / "epoch-0001"))
    resumed = load_model(loaded)
    optimizer = adam(resumed)
    state = load_state(loaded)
    assert (state["sums"], state["best"]) == ((1.5, 2), None)
    optimizer.load_state_dict(state["optimizer"])
    _same_tensors(optimizer.state_dict()["state"], trained[1].state_dict()["state"])

    uninterrupted = load_model(loaded)
    original = adam(uninterrupted)
    original.load_state_dict(trained[1].state_dict())
    step(resumed, optimizer)
    step(uninterrupted, original)
    _same_tensors(resumed.state_dict(), uninterrupted.state_dict())

    fresh = load_model(loaded)
    step(fresh, adam(fresh))
    assert not torch.equal(fresh.net.segmentation_head[0].weight, resumed.net.segmentation_head[0].weight)


def _same_tensors(first: dict[Any, Any], second: dict[Any, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, dict):
            _same_tensors(value, second[name])
        else:
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second[name])), name


def test_channels_last_does_not_change_the_digest(
    saved: Path, trained: tuple[LungNetwork, torch.optim.Optimizer], tmp_path: Path
) -> None:
    model = load_model(checkpoint.verify(str(saved / "epoch-0001")))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save(str(tmp_path), snapshot(model, trained[1]))
    digests = [checkpoint.verify(str(folder / "epoch-0001")).digest for folder in (saved, tmp_path)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("file", [*FILES, "config.json"])
@pytest.mark.parametrize("harm", ["missing", "empty", "truncated"])
def test_incomplete_checkpoint_is_refused_and_skipped_with_a_warning(
    file: str, harm: str, checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    incomplete = second(checkpoints)
    content = (incomplete / file).read_bytes()
    (incomplete / file).unlink()
    if harm != "missing":
        (incomplete / file).write_bytes(b"" if harm == "empty" else content[: len(content) // 2])
    with pytest.raises(CheckpointError) as caught:
        checkpoint.verify(str(incomplete))
    assert str(caught.value).startswith(f"{incomplete}: ")
    assert "\n" not in str(caught.value)
    latest = checkpoint.latest(str(checkpoints))
    assert latest is not None
    assert latest.folder == str(checkpoints / "epoch-0001")
    assert str(incomplete) in caplog.text


@pytest.mark.parametrize("file", [*FILES, "config.json"])
def test_unreadable_file_is_an_input_error(file: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a temporary storage failure would restart a run and delete its progress."""
    read = storage.read_bytes

    def fail(path: str) -> bytes:
        if path.endswith(file):
            raise InputError(f"{path}: cannot be read (SlowDown)")
        return read(path)

    monkeypatch.setattr(storage, "read_bytes", fail)
    with pytest.raises(InputError, match="SlowDown"):
        checkpoint.latest(str(checkpoints))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_one_flipped_bit_is_detected(file: str, position: float, checkpoints: Path) -> None:
    path = checkpoints / "epoch-0001" / file
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=f"the digest of {file} differs from config.json: the file is damaged"):
        checkpoint.verify(str(checkpoints / "epoch-0001"))
    assert checkpoint.latest(str(checkpoints)) is None


def test_file_of_another_checkpoint_is_refused(
    checkpoints: Path, trained: tuple[LungNetwork, torch.optim.Optimizer], tmp_path: Path
) -> None:
    save(str(tmp_path / "other"), with_other_weights(snapshot(*trained)))
    shutil.copy(tmp_path / "other" / "epoch-0001" / "model.safetensors", checkpoints / "epoch-0001")
    with pytest.raises(CheckpointError, match=r"the digest of model\.safetensors differs"):
        checkpoint.verify(str(checkpoints / "epoch-0001"))


@pytest.mark.parametrize("schema", [SCHEMA + 1, None, "1"])
def test_other_schema_version_is_refused(schema: object, checkpoints: Path) -> None:
    _change_config(checkpoints / "epoch-0001", schema=schema)
    with pytest.raises(CheckpointError, match=f"reads schema {SCHEMA}"):
        checkpoint.verify(str(checkpoints / "epoch-0001"))


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json", "\xff", '{"schema": 1, "digests": {}}'])
def test_invalid_config_is_refused(content: str, checkpoints: Path) -> None:
    (checkpoints / "epoch-0001" / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        checkpoint.verify(str(checkpoints / "epoch-0001"))


def test_latest_is_the_newest_complete_checkpoint(checkpoints: Path) -> None:
    newer = second(checkpoints)
    for folder in (checkpoints / ".hidden", checkpoints / "another"):
        folder.mkdir()
    latest = checkpoint.latest(str(checkpoints))
    assert latest is not None
    assert (latest.folder, latest.epoch) == (str(newer), 2)


def test_empty_folder_has_no_latest_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(str(tmp_path)) is None
    assert checkpoint.latest(str(tmp_path / "none")) is None


@pytest.mark.parametrize("inner", ["checkpoint/epoch-0001", "."])
def test_checkpoint_is_found_from_its_folder_and_its_run(inner: str, checkpoints: Path) -> None:
    (only,) = checkpoint.find_all(str(checkpoints.parent / inner))
    assert only.folder.endswith("checkpoint/epoch-0001")


def a_study(checkpoints: Path, *runs: str) -> str:
    study = checkpoints.parent.parent / "study"
    for run in runs:
        shutil.copytree(checkpoints.parent, study / run)
    storage.write_json(str(study / "study.json"), {"runs": list(runs)})
    return str(study)


def runs_of(checkpoints: list[checkpoint.Checkpoint]) -> list[str]:
    return [Path(item.folder).parent.parent.name for item in checkpoints]


def test_study_with_one_pooled_run_uses_that_run(checkpoints: Path) -> None:
    study = a_study(checkpoints, "from-north-fold0-11", "pooled-fold0-22", "from-south-fold0-33")
    assert runs_of(checkpoint.find_all(study)) == ["pooled-fold0-22"]


def test_runs_with_other_settings_are_not_in_the_ensemble(checkpoints: Path) -> None:
    study = a_study(checkpoints, "pooled-fold0-old", "pooled-fold0-new", "pooled-fold1-new")
    states = {
        "pooled-fold0-old": {"state": "finished", "in_results": False},
        "pooled-fold0-new": {"state": "finished", "in_results": True},
    }
    storage.write_json(f"{study}/study.json", {**storage.read_json(f"{study}/study.json"), "states": states})
    assert runs_of(checkpoint.find_all(study)) == ["pooled-fold0-new", "pooled-fold1-new"]


def test_study_of_one_run_uses_that_run(checkpoints: Path) -> None:
    study = a_study(checkpoints, "from-north-fold0-11")
    assert checkpoint.find_all(study)[0].folder == f"{study}/from-north-fold0-11/checkpoint/epoch-0001"


@pytest.mark.parametrize("runs", [("pooled-fold0-1", "pooled-fold1-2"), ("from-north-fold0-1", "from-south-fold0-2")])
def test_all_runs_of_one_protocol_are_found(runs: tuple[str, ...], checkpoints: Path) -> None:
    assert runs_of(checkpoint.find_all(a_study(checkpoints, *runs))) == list(runs)


def test_other_runs_are_ignored_if_pooled_runs_exist(checkpoints: Path) -> None:
    study = a_study(checkpoints, "pooled-fold0-1", "from-north-fold0-11", "pooled-fold1-2")
    shutil.rmtree(f"{study}/from-north-fold0-11")
    assert runs_of(checkpoint.find_all(study)) == ["pooled-fold0-1", "pooled-fold1-2"]


def test_study_with_an_incomplete_checkpoint_is_refused(checkpoints: Path) -> None:
    study = a_study(checkpoints, "pooled-fold0-1", "pooled-fold1-2")
    Path(study, "pooled-fold1-2", "checkpoint", "epoch-0001", "state.pt").unlink()
    with pytest.raises(CheckpointError, match="pooled-fold1-2: not a checkpoint"):
        checkpoint.find_all(study)


def test_study_without_runs_is_refused(tmp_path: Path) -> None:
    storage.write_json(str(tmp_path / "study.json"), {"runs": []})
    with pytest.raises(CheckpointError, match="the study has no runs"):
        checkpoint.find_all(str(tmp_path))


def test_study_without_checkpoints_is_refused(checkpoints: Path) -> None:
    study = a_study(checkpoints, "pooled-fold0-22")
    shutil.rmtree(f"{study}/pooled-fold0-22/checkpoint")
    again = "not finished.*: run the same lungseg train command again"
    with pytest.raises(CheckpointError, match=rf"{study}: the study is {again}"):
        checkpoint.find_all(study)
    with pytest.raises(CheckpointError, match=rf"pooled-fold0-22: the run is {again}"):
        checkpoint.find_all(f"{study}/pooled-fold0-22")


def test_run_killed_in_its_first_checkpoint_is_not_finished(checkpoints: Path) -> None:
    study = a_study(checkpoints, "pooled-fold0-22", "pooled-fold1-22")
    for config in Path(f"{study}/pooled-fold1-22/checkpoint").glob("*/config.json"):
        config.unlink()
    message = r"no checkpoint of 1 of 2 runs yet \(first: pooled-fold1-22\)"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.find_all(study)


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder: pass the folder of a finished run"):
        checkpoint.find_all(str(tmp_path / "none"))[0]
    with pytest.raises(CheckpointError, match=r"not a checkpoint: expected config\.json"):
        checkpoint.find_all(str(tmp_path))[0]


def test_run_with_an_incomplete_checkpoint_is_refused(checkpoints: Path) -> None:
    (checkpoints / "epoch-0001" / "state.pt").unlink()
    with pytest.raises(CheckpointError):
        checkpoint.find_all(str(checkpoints.parent))[0]


def settings_with(folder: Path, **values: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    _change_config(folder, settings={**content["settings"], **values})


def test_threshold_comes_from_the_finished_run(checkpoints: Path) -> None:
    settings_with(checkpoints / "epoch-0001", threshold=0.6)
    storage.write_json(str(checkpoints.parent / "run.json"), {"threshold": 0.35})
    assert checkpoint.stored_threshold(checkpoint.find_all(str(checkpoints.parent))[0]) == 0.35


def test_threshold_comes_from_the_settings_without_run_json(checkpoints: Path) -> None:
    settings_with(checkpoints / "epoch-0001", threshold=0.6)
    assert checkpoint.stored_threshold(checkpoint.find_all(str(checkpoints.parent))[0]) == 0.6


def test_default_threshold_is_one_half(checkpoints: Path) -> None:
    assert checkpoint.stored_threshold(checkpoint.find_all(str(checkpoints.parent))[0]) == 0.5


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self._marker),)


def load_all(folder: str) -> None:
    loaded = checkpoint.verify(folder)
    model = load_model(loaded)
    adam(model).load_state_dict(load_state(loaded)["optimizer"])


@pytest.mark.parametrize("file", ["state.pt", "model.safetensors"])
@pytest.mark.parametrize("digest_matches", [False, True], ids=["old digest", "matching digest"])
def test_malicious_pickle_is_refused_and_not_run(
    file: str, digest_matches: bool, checkpoints: Path, tmp_path: Path
) -> None:
    marker, folder = tmp_path / "executed", checkpoints / "epoch-0001"
    malicious = pickle.dumps({"optimizer": Malicious(marker)}, protocol=2)
    (folder / file).write_bytes(malicious)
    if digest_matches:
        digests = json.loads((folder / "config.json").read_text())["digests"]
        _change_config(folder, digests={**digests, file: hashlib.sha256(malicious).hexdigest()})
    with pytest.raises(CheckpointError):
        load_all(str(folder))
    assert not marker.exists()
    pickle.loads(malicious)  # the pickle does run code
    assert marker.exists()


def test_run_name_outside_the_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"schema": SCHEMA, "runs": ["pooled/../../elsewhere"]}))
    with pytest.raises(InputError, match="leaves its folder"):
        checkpoint.find_all(str(tmp_path))[0]


def test_saving_deletes_older_checkpoints(
    checkpoints: Path, trained: tuple[LungNetwork, torch.optim.Optimizer]
) -> None:
    save(str(checkpoints), snapshot(*trained, epoch=2))
    assert [path.name for path in checkpoints.iterdir()] == ["epoch-0002"]
    assert checkpoint.verify(str(checkpoints / "epoch-0002")).epoch == 2


def test_checkpoints_are_ordered_by_epoch_and_step(
    checkpoints: Path, trained: tuple[LungNetwork, torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "delete", lambda _: None)  # as if killed before deletion
    names = ["epoch-0001"]
    for epoch, step in ((1, 2), (1, 10), (2, 0), (2, 1)):
        save(str(checkpoints), snapshot(*trained, epoch=epoch, step=step))
        names.append(f"epoch-{epoch:04d}" + (f"-step-{step:08d}" if step else ""))
        latest = checkpoint.latest(str(checkpoints))
        assert latest is not None
        assert (latest.epoch, latest.config["step"]) == (epoch, step)
    assert sorted(path.name for path in checkpoints.iterdir()) == names


class CrashError(Exception):
    """Simulates the end of the process."""


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_crash_while_saving_keeps_the_older_checkpoint(
    writes: int, checkpoints: Path, trained: tuple[LungNetwork, torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, write = writes, storage.write_bytes

    def crash(path: str, content: bytes) -> None:
        nonlocal left
        if left == 0:
            raise CrashError
        left -= 1
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_bytes", crash)
        for module in (json_files, tables):
            patched.setattr(module, "write_bytes", crash)
        with pytest.raises(CrashError):
            save(str(checkpoints), snapshot(*trained, epoch=2))
    assert left == 0
    latest = checkpoint.latest(str(checkpoints))
    assert latest is not None
    assert latest.epoch == 1
    save(str(checkpoints), snapshot(*trained, epoch=2))  # the same command again
    assert [path.name for path in checkpoints.iterdir()] == ["epoch-0002"]


def test_crash_before_deletion_uses_the_newer_checkpoint(
    checkpoints: Path, trained: tuple[LungNetwork, torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(path: str) -> None:
        if path.endswith("epoch-0001"):
            raise CrashError

    with monkeypatch.context() as patched:
        patched.setattr(storage, "delete", crash)
        with pytest.raises(CrashError):
            save(str(checkpoints), snapshot(*trained, epoch=2))
    latest = checkpoint.latest(str(checkpoints))
    assert latest is not None
    assert latest.epoch == 2


def test_interrupted_overwrite_is_never_valid(
    checkpoints: Path, trained: tuple[LungNetwork, torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(path: str, value: dict[str, Any]) -> None:
        raise CrashError

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_json", crash)
        with pytest.raises(CrashError):
            save(str(checkpoints), with_other_weights(snapshot(*trained)))
    with pytest.raises(CheckpointError):
        checkpoint.verify(str(checkpoints / "epoch-0001"))
