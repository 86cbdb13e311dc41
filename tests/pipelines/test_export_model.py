"""`lungseg export-model` and `lungseg models`: folders that others can load, and the list of models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from lungseg import cli, storage
from lungseg.config.overview import MODEL_COMMANDS
from lungseg.errors import CheckpointError, InputError, SettingsError
from lungseg.inference.segmenter import load
from lungseg.inference.weights_comparison import changed_share
from lungseg.model import checkpoint, sources
from lungseg.pipelines import export_model, models

CARD = ["--title", "Small", "--terms", "CC0-1.0", "--data", "noise", "--made-by", "a test"]


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model.run([str(trained), "-o", str(folder), *CARD])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_exported_masks_are_nearly_the_same(exported: Path, trained: Path, archive: Path) -> None:
    """At most one pixel of a thousand changes; probabilities change by less than 0.005."""
    (first,), (second,) = (checkpoint.find_all(str(folder)) for folder in (trained, exported))
    assert changed_share(first, second) <= export_model.MAX_CHANGED
    before, after = load(str(trained)), load(str(exported))
    for path in sorted(archive.glob("*/images/*.png")):
        old, new = before(path), after(path)
        assert (old.mask != new.mask).mean() <= export_model.MAX_CHANGED
        assert np.abs(old.probability - new.probability).max() < 0.005
        assert new.row["seen_in_training"] == old.row["seen_in_training"]


def test_exported_weights_are_fp16(exported: Path, trained: Path) -> None:
    weights = safetensors.torch.load_file(exported / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.ndim > 1} == {torch.float16}
    (source,) = checkpoint.find_all(str(trained))
    original = (Path(source.folder) / "model.safetensors").stat().st_size
    assert (exported / "model.safetensors").stat().st_size < 0.7 * original


def test_an_exported_model_names_no_folder_of_its_training(exported: Path, prepared: Path, trained: Path) -> None:
    for name, content in contents(exported).items():
        assert str(prepared.parent).encode() not in content, name
        assert str(trained.parent).encode() not in content, name
    assert checkpoint.find_all(str(exported))[0].epoch == checkpoint.find_all(str(trained))[0].epoch


def test_the_card_is_written_for_readers(exported: Path) -> None:
    card = json.loads((exported / "card.json").read_text())
    assert (card["title"], card["terms"], card["data"], card["made_by"]) == ("Small", "CC0-1.0", "noise", "a test")
    page = (exported / "README.md").read_text()
    assert all(text in page for text in ("# Small", "- Terms: CC0-1.0", "- Made by: a test"))


def test_the_same_command_gives_the_same_files(exported: Path, trained: Path, tmp_path: Path) -> None:
    unfinished = shutil.copytree(exported, tmp_path / "again")
    (unfinished / "config.json").unlink()
    export_model.run([str(trained), "-o", str(unfinished), *CARD])
    export_model.run([str(trained), "-o", str(unfinished), *CARD])
    assert contents(unfinished) == contents(exported)


def test_a_model_is_exported_again_with_its_card(exported: Path, tmp_path: Path) -> None:
    export_model.run([str(exported), "-o", str(tmp_path / "copy"), "--title", "Smaller"])
    card = json.loads((tmp_path / "copy" / "card.json").read_text())
    assert (card["title"], card["terms"]) == ("Smaller", "CC0-1.0")
    copy = tmp_path / "copy" / "model.safetensors"
    assert copy.read_bytes() == (exported / "model.safetensors").read_bytes()


def test_the_licence_of_a_model_stays_with_it(exported: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(exported, source)
    (source / "LICENSE").write_text("as you like")
    export_model.run([str(source), "-o", str(tmp_path / "again")])
    assert contents(tmp_path / "again")["LICENSE"] == b"as you like"


def test_a_study_of_several_runs_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"2 models.*export each run alone \(pooled-fold0-test, pooled-fold1-test\)"
    ):
        export_model.run([str(study), "-o", str(tmp_path / "model")])


def test_other_files_are_not_replaced(exported: Path, study: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="has other files"):
        export_model.run([str(study / "pooled-fold1-test"), "-o", str(tmp_path)])
    before = contents(exported)
    with pytest.raises(InputError, match="has other files"):
        export_model.run([str(study / "pooled-fold1-test"), "-o", str(exported)])
    assert contents(exported) == before


def test_a_model_whose_masks_change_is_withdrawn(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_model, "MAX_CHANGED", -1.0)
    with pytest.raises(CheckpointError, match="of the pixels of its masks change"):
        export_model.run([str(trained), "-o", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_weights_beyond_fp16_are_refused(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (folder,) = (run / "checkpoint").iterdir()
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.ndim == 4)
    weights[name][0] = 1e6
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["digests"]["model.safetensors"] = storage.digest_bytes((folder / "model.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="fp16 cannot hold"):
        export_model.run([str(run), "-o", str(tmp_path / "model")])


def test_models_at_hand_are_listed(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "RELEASED", tmp_path / "released")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    models.run([])
    assert "no models are installed" in capsys.readouterr().out
    shutil.copytree(exported, tmp_path / "released" / "lungs")
    monkeypatch.setattr(sources, "BUCKETS", ("file://",))
    copy = sources.resolve(exported.as_uri())
    digest = checkpoint.verify(copy).digest
    models.run([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["lungs", "installed", lines[1].split()[2], digest, "Small", "CC0-1.0"]
    assert lines[2].split()[:2] == [exported.as_uri(), "downloaded"]
    (Path(copy) / "model.safetensors").write_bytes(b"")
    models.run([])
    assert capsys.readouterr().out.splitlines()[2].split()[1:] == ["damaged", "0.0", "-", "-", "-"]


@pytest.mark.parametrize("name", MODEL_COMMANDS)
def test_the_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.dispatch([name, "--help"])
    assert f"usage: lungseg {name}" in capsys.readouterr().out


def test_an_unknown_model_ends_with_status_1(caplog: pytest.LogCaptureFixture) -> None:
    assert cli.dispatch(["export-model", "no-such-model", "-o", "unused"]) == 1
