import json
import shutil
from pathlib import Path

import pytest
import torch

from lungseg.config import InferSettings, LoaderSettings, ModelSettings, PreprocessSettings, TrainSettings
from lungseg.data import datasets, folds, images
from lungseg.data.shard_plan import plan_shards
from lungseg.engine import fit, study_data
from lungseg.engine.run import Run
from lungseg.errors import CheckpointError, InputError, SettingsError
from lungseg.pipelines import infer
from lungseg.storage import read_table

Row = dict[str, object]


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, trained in this process for one epoch."""
    folder = tmp_path_factory.mktemp("run")
    settings = TrainSettings(
        data=tuple(datasets.find_datasets([str(prepared)])),
        folds=2,
        model=ModelSettings(encoder="tu-mobilenetv3_small_100", weights="none"),
        loader=LoaderSettings(batch=2),
        epochs=1,
        wandb={"mode": "disabled"},  # type: ignore[arg-type]
    )
    data = study_data.open_data(settings.data)
    (plan,) = folds.plan_study(("pooled",), [part.name for part in data], 2, (0,), 0)
    run = Run(settings, plan, settings.data, "pooled-fold0-test", str(folder))
    fit.finish(fit.start(run, torch.device("cpu")), lambda _: None)
    return folder


def _rows(out: Path) -> list[Row]:
    return [row for path in sorted(out.glob("part-*.parquet")) for row in read_table(str(path)).to_pylist()]


def _settings(archive: Path, trained: Path, out: Path, **changes: object) -> InferSettings:
    values = {"archive": str(archive), "checkpoint": str(trained), "out": str(out), "part": 3, "batch": 2, **changes}
    return InferSettings.model_validate(values)


def test_one_row_an_image_and_masks_at_native_size(
    ray_cluster: None, own_archive: Path, trained: Path, tmp_path: Path
) -> None:
    broken = sorted(own_archive.rglob("images/*"))[0]
    broken.write_bytes(broken.read_bytes()[:100])
    infer.run(_settings(own_archive, trained, tmp_path / "out"))
    rows = _rows(tmp_path / "out")
    files = sorted(str(path) for path in own_archive.rglob("images/*"))
    assert sorted(str(row["source_uri"]) for row in rows) == files
    (bad,) = [row for row in rows if row["status"] != "ok"]
    assert bad["source_uri"] == str(broken)
    assert str(bad["error"]).startswith("undecodable")
    assert bad["mask"] is None
    for row in rows:
        if row is bad:
            continue
        native = images.decode(Path(str(row["source_uri"])).read_bytes(), "image").shape
        assert (row["height"], row["width"]) == native
        mask = images.decode_rle(str(row["mask"]), *native)
        assert int(mask.sum()) == row["area_px"]
        (uri,) = row["mask_uris"]  # type: ignore[misc]
        truth = images.decode_mask(Path(uri).read_bytes(), "mask")
        overlap = int((mask & truth).sum())
        assert row["dice"] == pytest.approx(2 * overlap / (int(mask.sum()) + int(truth.sum())))
    assert {row["seen_in_training"] for row in rows if row is not bad} == {True, False}
    summary = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert summary["counts"] == {"ok": len(files) - 1, "rejected": 1}


def test_a_lost_part_is_made_again_to_the_bit(ray_cluster: None, archive: Path, trained: Path, tmp_path: Path) -> None:
    settings = _settings(archive, trained, tmp_path)
    infer.run(settings)
    parts = sorted(tmp_path.glob("part-*.parquet"))
    before = {path: path.read_bytes() for path in parts}
    kept = parts[1].stat().st_mtime_ns
    parts[0].unlink()
    infer.run(settings)
    assert {path: path.read_bytes() for path in sorted(tmp_path.glob("part-*.parquet"))} == before
    assert parts[1].stat().st_mtime_ns == kept


def test_prepared_data_and_its_folder_of_images_agree(
    ray_cluster: None, archive: Path, prepared: Path, trained: Path, tmp_path: Path
) -> None:
    infer.run(_settings(archive, trained, tmp_path / "files"))
    infer.run(_settings(prepared, trained, tmp_path / "tars"))
    files, tars = ({(r["dataset"], r["image_id"]): r for r in _rows(tmp_path / name)} for name in ("files", "tars"))
    assert files.keys() == tars.keys()
    assert all(files[key]["mask"] == tars[key]["mask"] for key in files)
    assert all(str(row["source_uri"]).endswith(f".tar#{row['image_id']}") for row in tars.values())


def test_other_settings_never_mix_with_the_old_parts(
    ray_cluster: None, archive: Path, trained: Path, tmp_path: Path
) -> None:
    infer.run(_settings(archive, trained, tmp_path))
    with pytest.raises(InputError, match=r"another plan \(threshold changed\): pass another --out"):
        infer.run(_settings(archive, trained, tmp_path, threshold=0.4))


def test_a_file_that_changed_is_not_answered_with_its_old_row(
    ray_cluster: None, own_archive: Path, trained: Path, tmp_path: Path
) -> None:
    infer.run(_settings(own_archive, trained, tmp_path / "out"))
    changed = sorted(own_archive.rglob("images/*"))[0]
    changed.write_bytes(sorted(own_archive.rglob("images/*"))[1].read_bytes())
    with pytest.raises(InputError, match="the archive's files changed"):
        infer.run(_settings(own_archive, trained, tmp_path / "out"))


def test_images_without_masks_have_no_metrics(ray_cluster: None, archive: Path, trained: Path, tmp_path: Path) -> None:
    folder = sorted(archive.rglob("images"))[0]
    infer.run(_settings(folder, trained, tmp_path, postprocess="lungs"))
    rows = _rows(tmp_path)
    assert len(rows) == len(list(folder.iterdir()))
    assert all(row["status"] == "ok" and row["dice"] is None and row["hd95_px"] is None for row in rows)
    assert all(int(str(row["components"])) <= 2 for row in rows)


def test_data_prepared_in_another_way_is_refused(prepared: Path, trained: Path, archive: Path, tmp_path: Path) -> None:
    from lungseg.data import manifest, sources

    records = manifest.refuse_same_ids(sources.discover(str(archive)))
    datasets.write_datasets(plan_shards(records, str(tmp_path / "other"), PreprocessSettings(size=80), 4))
    with pytest.raises(InputError, match="the model expects"):
        infer.run(_settings(tmp_path / "other", trained, tmp_path / "out"))


def test_wrong_use(archive: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--archive"):
        infer.run(InferSettings(checkpoint=str(trained)))
    with pytest.raises(CheckpointError, match="no such folder"):
        infer.run(_settings(archive, tmp_path / "missing", tmp_path / "out"))
    with pytest.raises(InputError, match="no such folder"):
        infer.run(_settings(tmp_path / "missing", trained, tmp_path / "out"))


def test_a_model_whose_training_has_not_ended_is_told(
    archive: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise SettingsError("seen")

    monkeypatch.setattr(infer, "_items", stop)
    early = shutil.copytree(trained, tmp_path / "early")
    (config,) = early.glob("checkpoint/*/config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "trained": False, "epochs": 50}))
    for run, said in ((trained, False), (early, True)):
        with pytest.raises(SettingsError, match="seen"):
            infer.run(_settings(archive, run, tmp_path / "out"))
        assert ("trained for 1 of 50 epochs so far" in caplog.text) is said
