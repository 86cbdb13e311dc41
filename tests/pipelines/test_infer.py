"""Inference over an archive: one row per image for every kind of input, and never a row of another plan."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from lungseg import storage
from lungseg.config import InferSettings, PostprocessSettings, PreprocessSettings
from lungseg.errors import CheckpointError, InputError, SettingsError
from lungseg.imaging import codecs
from lungseg.inference import cpu_tasks
from lungseg.ingest import record_checks, sources
from lungseg.model import checkpoint
from lungseg.model.checkpoint_io import load_weights
from lungseg.pipelines import infer, infer_on_cluster
from lungseg.predictions.parts import StatusCounts
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.schema import STATUSES
from tests.pipelines import odd_inputs
from tests.shared_fixtures import EPOCHS, steady

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]


class Planted:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def rows_of(out: Path) -> list[Row]:
    return [
        row for path in sorted(out.glob("rows/part-*.parquet")) for row in storage.read_table(str(path)).to_pylist()
    ]


def masks(rows: Iterable[Row]) -> dict[tuple[str, str], str | None]:
    return {(row["dataset"], row["image_id"]): row["mask"] for row in rows}


def settings_of(archive: Path, model: Path, out: Path, **changes: object) -> InferSettings:
    values = {"archive": str(archive), "checkpoint": (str(model),), "out": str(out), "part_size": 3, "batch_size": 2}
    return InferSettings.model_validate({**values, **changes})


def read_summary(out: Path) -> dict[str, Any]:
    return storage.read_json(str(out / "predictions.json"))


def test_next_commands_have_absolute_paths_and_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_json("runs/first/study.json", {})
    settings = InferSettings(archive="films", checkpoint=("runs/first",))
    with caplog.at_level("INFO", "lungseg"):
        infer._end(settings, f"{tmp_path}/out", StatusCounts(Counter({"ok": 1}), Counter()))
    export, report = caplog.messages[-1].removeprefix("next: ").split(", or ")
    assert export.endswith(f"--predictions {tmp_path}/out --formats overlays --worst 20 --out {tmp_path}/out-worst")
    assert report == f"lungseg report study --study {tmp_path}/runs/first --predictions {tmp_path}/out"


@pytest.fixture(scope="module")
def archive_and_out(
    ray_cluster: None, archive: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """An archive with a damaged image and a dangling link, and its predictions by two workers."""
    folder = tmp_path_factory.mktemp("archive_and_out")
    own = Path(shutil.copytree(archive, folder / "archive"))
    broken = own / "north" / "images" / "north_00.png"
    broken.write_bytes(broken.read_bytes()[:100])
    (own / "south" / "images" / "south_99.png").symlink_to("nowhere.png")
    infer.run(settings_of(own, trained, folder / "out", workers=2))
    return own, folder / "out"


@pytest.fixture
def film(archive: Path, tmp_path: Path) -> Path:
    """One image that a test may change."""
    return Path(shutil.copy(archive / "south" / "images" / "south_00.png", tmp_path / "film.png"))


def test_every_image_has_one_row(archive_and_out: tuple[Path, Path]) -> None:
    archive, out = archive_and_out
    rows = rows_of(out)
    assert sorted(row["source_uri"] for row in rows) == sorted(str(path) for path in archive.rglob("images/*"))
    bad = {row["image_id"]: row for row in rows if row["status"] != "ok"}
    assert {name: (row["status"], *row["codes"]) for name, row in bad.items()} == {
        "north_00": ("rejected", "undecodable"),
        "south_99": ("failed", "unreadable"),
    }
    assert all(row["mask"] is None and row["dice"] is None for row in bad.values())


def test_masks_have_native_size_and_metrics(archive_and_out: tuple[Path, Path]) -> None:
    usable = [row for row in rows_of(archive_and_out[1]) if row["status"] == "ok"]
    assert sum(row["dice"] > 0.8 for row in usable) >= 6
    for row in usable:
        native = codecs.decode(Path(row["source_uri"]).read_bytes(), "image").shape
        assert (row["height"], row["width"]) == native
        mask = codecs.decode_rle(row["mask"], *native)
        assert int(mask.sum()) == row["area_px"]
        (uri,) = row["mask_uris"]
        truth = codecs.decode_mask(Path(uri).read_bytes(), "mask")
        overlap = int((mask & truth).sum())
        assert row["dice"] == pytest.approx(2 * overlap / (int(mask.sum()) + int(truth.sum())))


def test_rows_flag_images_seen_in_training(archive_and_out: tuple[Path, Path], trained: Path) -> None:
    seen = checkpoint.trained_on(checkpoint.find_all(str(trained))[0])
    rows = [row for row in rows_of(archive_and_out[1]) if row["status"] == "ok"]
    assert {row["seen_in_training"] for row in rows} == {True, False}
    for row in rows:
        digest = codecs.pixel_digest(codecs.decode(Path(row["source_uri"]).read_bytes(), ""))
        assert row["seen_in_training"] is (digest in seen)


def test_counts_add_up_to_the_inputs(archive_and_out: tuple[Path, Path]) -> None:
    archive, out = archive_and_out
    summary, count = read_summary(out), len(list(archive.rglob("images/*")))
    assert summary["images"] == summary["processed_now"] == count == sum(summary["counts"].values())
    assert summary["counts"] == {"ok": count - 2, "rejected": 1, "failed": 1}
    assert summary["predicted_now"] == count - 2
    assert set(summary["counts"]) <= set(STATUSES)
    assert {(entry["status"], entry["code"]): entry["images"] for entry in summary["codes"]} == {
        ("rejected", "undecodable"): 1,
        ("failed", "unreadable"): 1,
    }
    assert sum(part["rows"] for part in summary["parts"]) == count
    assert (summary["stages"]["device"], summary["stages"]["actors"], summary["stages"]["images"]) == ("cpu", 2, count)


def test_another_batch_size_and_no_cluster_give_the_same_masks(
    archive_and_out: tuple[Path, Path], without_ray: None, trained: Path, tmp_path: Path
) -> None:
    infer.run(settings_of(archive_and_out[0], trained, tmp_path / "out", batch_size=5))
    assert masks(rows_of(tmp_path / "out")) == masks(rows_of(archive_and_out[1]))


def test_lost_part_and_part_with_failed_row_are_predicted_again(
    archive_and_out: tuple[Path, Path],
    without_ray: None,
    trained: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    archive, first = archive_and_out
    out = Path(shutil.copytree(first, tmp_path / "out"))
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("rows/part-*")}
    assert len(before) == 3
    (out / "rows" / "part-000001.parquet").unlink()
    (out / ".writing-left-behind").write_bytes(b"half a part")
    caplog.set_level("INFO")
    infer.run(settings_of(archive, trained, out, workers=2))
    assert "9 images in 3 parts (1 already finished)" in caplog.text
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("rows/part-*")}
    assert [name for name in before if after[name] == before[name]] == ["part-000000.parquet"]
    assert steady(rows_of(out)) == steady(rows_of(first))
    assert (read_summary(out)["counts"], read_summary(out)["processed_now"]) == (read_summary(first)["counts"], 6)
    assert not list(out.rglob(".writing-*"))


def test_too_many_failures_stop_and_keep_finished_parts(
    ray_cluster: None, own_archive: Path, trained: Path, tmp_path: Path
) -> None:
    for path in sorted(own_archive.rglob("images/*"))[:2]:
        path.write_bytes(path.read_bytes()[:100])
    out = tmp_path / "out"
    with pytest.raises(InputError) as stopped:
        infer.run(settings_of(own_archive, trained, out, max_failed="1", part_size=2, workers=1))
    message = str(stopped.value)
    assert "of 8" in message
    assert message.startswith("2 of ")
    assert "images so far have no mask (2 undecodable), --max-failed 1 allows 1" in message
    assert "first: north_00.png is " in message
    assert "(undecodable): fix or remove these files" in message
    assert message.endswith("finished parts are kept")
    assert not (out / "predictions.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("rows/part-*")}
    assert "part-000000.parquet" in kept
    # The same command stops at once. A command that allows more failures continues.
    with pytest.raises(InputError, match=r"2 of .* images so far have no mask"):
        infer.run(settings_of(own_archive, trained, out, max_failed="1", part_size=2, workers=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer_on_cluster, "predict_on_cluster", lambda job, rows, _: infer.predict_locally(job, rows))
        infer.run(settings_of(own_archive, trained, out, max_failed="25%", part_size=2))
    assert read_summary(out)["counts"] == {"ok": 6, "rejected": 2}
    assert {name: (out / "rows" / name).stat().st_mtime_ns for name in kept} == kept


def test_one_image_prints_its_result_without_ray(archive: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "without_ray.py").write_text(
        "import sys; sys.modules['ray'] = None\nfrom lungseg.cli import main\nsys.exit(main('infer', sys.argv[1:]))\n"
    )
    image, out = archive / "south" / "images" / "south_01.png", tmp_path / "out"
    command = [sys.executable, str(tmp_path / "without_ray.py"), "--archive", str(image)]
    done = subprocess.run(
        [*command, "--checkpoint", str(trained), "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    (row,) = rows_of(out)
    assert first.startswith(f"south_01.png: lungs {row['area_px'] / (99 * 140):.1%} of 140 x 99 px (right ")
    assert last == str(out / "rows" / "part-000000.parquet")


def test_tars_manifest_listing_and_folder_give_same_masks(
    without_ray: None, predicted: Path, archive: Path, prepared: Path, trained: Path, tmp_path: Path
) -> None:
    folder = rows_of(predicted)
    infer.run(settings_of(prepared, trained, tmp_path / "tars"))
    tars = rows_of(tmp_path / "tars")
    assert masks(tars) == masks(folder)
    assert all(row["source_uri"].endswith(f".tar#{row['image_id']}") for row in tars)
    assert [row["seen_in_training"] for row in tars] == [row["seen_in_training"] for row in folder]
    north = [row for row in folder if row["dataset"] == "north"]
    infer.run(settings_of(prepared / "north" / "manifest.parquet", trained, tmp_path / "manifest"))
    assert steady(rows_of(tmp_path / "manifest")) == steady(north)
    lines = [f"{row['source_uri']},{row['mask_uris'][0]},{row['dataset']}" for row in north]
    (tmp_path / "list.csv").write_text("\n".join(["film,lungs,dataset", *lines, f"{archive}/gone.png,,north"]))
    columns = {"image": "film", "masks": ("lungs",)}
    infer.run(settings_of(tmp_path / "list.csv", trained, tmp_path / "listing", columns=columns))
    *listed, missing = sorted(rows_of(tmp_path / "listing"), key=lambda row: row["source_uri"].endswith("gone.png"))
    assert [(row["source_uri"], row["mask"], row["dice"]) for row in listed] == [
        (row["source_uri"], row["mask"], row["dice"]) for row in north
    ]
    assert (missing["status"], missing["codes"]) == ("failed", ["unreadable"])
    infer.run(settings_of(archive, trained, tmp_path / "some", pattern="north/*"))
    assert steady(rows_of(tmp_path / "some")) == steady(north)


def test_study_predicts_with_models_that_never_saw_the_image(
    without_ray: None, archive: Path, study: Path, tmp_path: Path
) -> None:
    runs = [checkpoint.find_all(str(study / f"pooled-fold{fold}-test"))[0] for fold in (0, 1)]
    seen = [checkpoint.trained_on(run) for run in runs]
    for name in ("study", runs[0].config["run"], runs[1].config["run"]):
        infer.run(settings_of(archive, study if name == "study" else study / name, tmp_path / name))
    rows = rows_of(tmp_path / "study")
    single = [masks(rows_of(tmp_path / run.config["run"])) for run in runs]
    assert single[0] != single[1]
    for row in rows:
        digest = codecs.pixel_digest(codecs.decode(Path(row["source_uri"]).read_bytes(), ""))
        never = [fold for fold in (0, 1) if digest not in seen[fold]]
        assert (row["models"], row["seen_in_training"]) == (len(never) or 2, not never)
        if len(never) == 1:
            assert row["mask"] == single[never[0]][row["dataset"], row["image_id"]]
    assert sum(row["models"] == 1 for row in rows) >= len(rows) / 2
    assert len({row["model"] for row in rows} | {run.digest for run in runs}) == 3


def test_images_without_masks_have_no_metrics(without_ray: None, archive: Path, trained: Path, tmp_path: Path) -> None:
    folder = archive / "north" / "images"
    infer.run(settings_of(folder, trained, tmp_path, postprocess={"lungs": True}))
    rows = rows_of(tmp_path)
    assert len(rows) == len(list(folder.iterdir()))
    assert all(row["status"] == "ok" and row["dice"] is None and row["hd95_px"] is None for row in rows)
    assert all(row["components"] <= 2 for row in rows)


def test_only_the_part_of_a_failed_row_is_repeated(
    without_ray: None, archive: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = storage.read_bytes

    def away(path: str) -> bytes:
        if path.endswith("south_02.png"):
            raise InputError(f"{path}: cannot be read (the disk is away)")
        return read(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "read_bytes", away)
        infer.run(settings_of(archive, trained, tmp_path))
    assert read_summary(tmp_path)["counts"] == {"ok": 7, "failed": 1}
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("rows/part-*")}
    infer.run(settings_of(archive, trained, tmp_path))
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("rows/part-*")}
    assert [name for name in after if after[name] != before[name]] == ["part-000002.parquet"]
    assert read_summary(tmp_path)["counts"] == {"ok": 8}
    assert read_summary(tmp_path)["predicted_now"] == 2


def test_input_that_changes_during_the_job_fails(
    film: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*arguments: Any) -> Any:
        film.write_bytes(film.read_bytes() + b"more")
        return cpu_tasks.open_part(*arguments)

    monkeypatch.setattr(infer, "open_part", late)
    with pytest.raises(InputError, match="no image has a mask: 1 changed"):
        infer.run(settings_of(film, trained, tmp_path / "out"))
    (row,) = rows_of(tmp_path / "out")
    assert (row["status"], row["mask"], row["codes"]) == ("failed", None, ["changed"])
    with pytest.raises(InputError, match="files that have changed since then: pass another --out"):
        infer.run(settings_of(film, trained, tmp_path / "out"))


def test_changed_input_is_refused_by_the_next_start(film: Path, archive: Path, trained: Path, tmp_path: Path) -> None:
    infer.run(settings_of(film, trained, tmp_path / "out"))
    infer.run(settings_of(film, trained, tmp_path / "out"))
    shutil.copy(archive / "south" / "images" / "south_02.png", film)
    before = (tmp_path / "out" / "rows" / "part-000000.parquet").read_bytes()
    with pytest.raises(InputError, match="files that have changed since then: pass another --out"):
        infer.run(settings_of(film, trained, tmp_path / "out"))
    assert (tmp_path / "out" / "rows" / "part-000000.parquet").read_bytes() == before


def test_parts_of_other_models_or_settings_never_mix(film: Path, study: Path, tmp_path: Path, archive: Path) -> None:
    first, other, out = study / "pooled-fold0-test", study / "pooled-fold1-test", tmp_path / "out"
    infer.run(settings_of(film, first, out))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    changes: dict[str, dict[str, object]] = {
        "--threshold": {"threshold": 0.4},
        "--tta none, now flip": {"tta": "flip"},
        "--precision": {"precision": "bf16"},
        "--postprocess.holes yes, now no": {"postprocess": PostprocessSettings(holes=False)},
        "--part-size 3, now 4": {"part_size": 4},
        "--archive": {"archive": str(archive / "south" / "images" / "south_00.png")},
        "--archive, now": {"archive": str(archive)},
        "--checkpoint": {"checkpoint": (str(other),)},
        "--checkpoint, now": {"checkpoint": (str(study),)},
    }
    for message, change in changes.items():
        with pytest.raises(
            InputError, match=r"made with other inputs or settings .*: repeat those, or pass another --out"
        ) as error:
            infer.run(settings_of(film, first, out).model_copy(update=change))
        assert all(name in str(error.value) for name in message.split(", ")), str(error.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_moved_model_and_other_batch_size_keep_the_plan(
    film: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    infer.run(settings_of(film, trained, tmp_path / "out"))
    moved = Path(shutil.copytree(trained, tmp_path / "moved"))
    caplog.set_level("INFO")
    infer.run(settings_of(film, moved, tmp_path / "out", batch_size=7, workers=5))
    assert "1 image in 1 part (1 already finished)" in caplog.text


@pytest.mark.parametrize("number", [0, 1, 8])
def test_foreign_part_in_the_folder_is_refused(
    number: int, predicted: Path, archive: Path, study: Path, tmp_path: Path
) -> None:
    out, film = tmp_path / "out", archive / "south" / "images" / "south_00.png"
    infer.run(settings_of(film, study / "pooled-fold1-test", tmp_path / "foreign"))
    shutil.copytree(predicted, out)
    name = f"part-{number:06d}.parquet"
    shutil.copy(tmp_path / "foreign" / "rows" / "part-000000.parquet", out / "rows" / name)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"{name} belongs to another plan: pass another --out, or delete this file"):
        infer.run(settings_of(archive, study / "pooled-fold0-test", out))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_hostile_ids_create_no_files_outside(film: Path, prepared: Path, trained: Path, tmp_path: Path) -> None:
    table = storage.read_table(str(prepared / "north" / "manifest.parquet")).slice(0, 1)
    (row,) = table.to_pylist()
    row |= {"image_id": "../../../climbed", "dataset": "../climbed", "image_uri": str(film), "mask_uris": []}
    row["mask_classes"] = []
    storage.write_table(str(tmp_path / "manifest.parquet"), table.from_pylist([row], table.schema))
    infer.run(settings_of(tmp_path / "manifest.parquet", trained, tmp_path / "a" / "b" / "out"))
    (row,) = rows_of(tmp_path / "a" / "b" / "out")
    assert (row["status"], row["image_id"]) == ("ok", "../../../climbed")
    assert not [path for path in tmp_path.parent.rglob("*climbed*") if path.name != tmp_path.name]
    files = {path.name for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert files == {"plan.json", "part-000000.parquet", "predictions.csv", "predictions.json"}


HOSTILE = ("bomb_of_50000_px", "dicom_with_a_wrong_length", "dicom_that_promises_too_much", "random_bytes")


def test_hostile_files_are_rejected_with_one_line(film: Path, trained: Path, tmp_path: Path, without_ray: None) -> None:
    (tmp_path / "films").mkdir()
    known = odd_inputs.kinds()
    for name in HOSTILE:
        kind = known[name]
        (tmp_path / "films" / f"{name}{kind.suffix}").write_bytes(kind.image or b"")
    shutil.copy(film, tmp_path / "films" / "good.png")
    infer.run(settings_of(tmp_path / "films", trained, tmp_path / "out"))
    rows = {row["image_id"]: row for row in rows_of(tmp_path / "out")}
    assert rows.pop("good")["status"] == "ok"
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(HOSTILE, "rejected")
    assert all(row["codes"] and "\n" not in row["message"] for row in rows.values())


def test_an_archive_without_any_usable_image_is_an_error(trained: Path, tmp_path: Path, without_ray: None) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="no image has a mask: 1 undecodable"):
        infer.run(settings_of(tmp_path / "films", trained, tmp_path / "out"))
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["rejected"]


def plant(run: Path, name: str, marker: Path) -> None:
    """Replace a file of a checkpoint by an executable pickle, with the matching digest."""
    (folder,) = (run / "checkpoint").iterdir()
    content = pickle.dumps(Planted(marker))
    (folder / name).write_bytes(content)
    config = json.loads((folder / "config.json").read_text())
    config["digests"][name] = hashlib.sha256(content).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
    pickle.loads(content)
    assert marker.exists(), "the planted pickle must work"
    marker.unlink()


def test_pickle_in_a_checkpoint_is_never_loaded(film: Path, trained: Path, tmp_path: Path) -> None:
    run, marker = Path(shutil.copytree(trained, tmp_path / "run")), tmp_path / "it-ran"
    plant(run, "state.pt", marker)
    infer.run(settings_of(film, run, tmp_path / "out"))
    assert rows_of(tmp_path / "out")[0]["status"] == "ok"
    assert not marker.exists()


def test_pickled_weights_are_refused_before_writing(film: Path, trained: Path, tmp_path: Path) -> None:
    run, marker = Path(shutil.copytree(trained, tmp_path / "run")), tmp_path / "it-ran"
    plant(run, "model.safetensors", marker)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit its network") as refused:
        infer.run(settings_of(film, run, tmp_path / "out"))
    assert len(str(refused.value).splitlines()) == 1
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_data_or_models_of_other_preparation_are_refused(
    archive: Path, trained: Path, film: Path, tmp_path: Path
) -> None:
    records = record_checks.reject_duplicate_ids(sources.discover(str(archive)))
    dataset_writer.write_datasets(plan_shards(records, str(tmp_path / "other"), PreprocessSettings(size=80), 4))
    with pytest.raises(
        InputError, match=r"found --preprocess\.size 80, expected 64.*prepare it with the same settings"
    ):
        infer.run(settings_of(tmp_path / "other", trained, tmp_path / "out"))
    other = Path(shutil.copytree(trained, tmp_path / "run"))
    (config,) = other.glob("checkpoint/*/config.json")
    content = json.loads(config.read_text())
    content["preprocess"]["size"] = 80
    config.write_text(json.dumps(content))
    (weights,) = other.glob("checkpoint/*/model.safetensors")
    other_model = checkpoint.find_all(str(other))[0]
    changed = {name: value + 1 for name, value in load_weights(other_model).items()}
    weights.write_bytes(safetensors.torch.save(changed))
    content["digests"]["model.safetensors"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    config.write_text(json.dumps(content))
    with pytest.raises(InputError, match="pass models with the same preprocessing"):
        infer.run(settings_of(film, trained, tmp_path / "out", checkpoint=(str(trained), str(other))))


def test_wrong_settings_are_refused(archive: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--archive"):
        infer.run(InferSettings(checkpoint=(str(trained),)))
    with pytest.raises(SettingsError, match="is the archive itself: pass another folder"):
        infer.run(settings_of(archive, trained, archive))
    with pytest.raises(SettingsError, match="--precision fp16 on a CPU"):
        infer.run(settings_of(archive, trained, tmp_path / "out", precision="fp16", device="cpu"))
    with pytest.raises(CheckpointError, match="no such folder"):
        infer.run(settings_of(archive, tmp_path / "missing", tmp_path / "out"))
    with pytest.raises(InputError, match="no such folder"):
        infer.run(settings_of(tmp_path / "missing", trained, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_unfinished_training_is_reported(
    archive: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise SettingsError("listed")

    monkeypatch.setattr(infer, "list_items", stop)
    early = shutil.copytree(trained, tmp_path / "early")
    (config,) = early.glob("checkpoint/*/config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "trained": False, "epochs": 50}))
    for run, is_reported in ((trained, False), (early, True)):
        with pytest.raises(SettingsError, match="listed"):
            infer.run(settings_of(archive, run, tmp_path / "out"))
        assert (f"trained for {EPOCHS} of 50 epochs so far" in caplog.text) is is_reported
