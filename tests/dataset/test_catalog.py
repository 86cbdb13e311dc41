"""Only complete prepared datasets are finished, listed and opened."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lungseg import storage
from lungseg.config import PreprocessSettings
from lungseg.dataset import catalog
from lungseg.errors import InputError, ShardError
from lungseg.ingest import sources
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import ShardPlan, plan_shards
from lungseg.schema import Record
from tests.cluster.refusing import refusing

SMALL = PreprocessSettings(size=64)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Outliers


def write_part(plan: ShardPlan, areas: list[float | None]) -> None:
    """Write a shard like write_shard, with records of these mask areas."""
    records = [{**as_dict(record), "mask_area": area} for record, area in zip(plan.records, areas, strict=True)]
    places = {f"{name}_{field}": 1 for name in ("image", "mask", "json") for field in ("offset", "size", "crc32")}
    ids = ("image_id", "dataset", "patient_id", "finding", "pixel_digest", "phash", "fold", "flags")
    known = {"shard": plan.name, "phash": "0" * 64, **places}
    rows = [{**{name: record[name] for name in ids}, **known} for record in records]
    shard = {"name": plan.name, "bytes": 1, "sha256": plan.name, "samples": len(rows)}
    part = {"shard": shard, "records": records, "index": rows}
    storage.write_json(f"{plan.folder}/parts/{plan.name}.json", {**part, "checked": storage.digest(part)})


def as_dict(record: Record) -> dict[str, object]:
    return {name: getattr(record, name) for name in Record.__dataclass_fields__}


def test_a_mask_far_larger_than_all_others_is_rejected(tmp_path: Path) -> None:
    records = [Record(f"{number:02d}", "north", f"/x/{number:02d}.png") for number in range(30)]
    plans = plan_shards(records, str(tmp_path), SMALL, 10)
    areas = np.random.default_rng(0).normal(0.25, 0.02, 30).tolist()
    areas[13] = 0.68
    areas[17] = None
    for i, plan in enumerate(plans):
        write_part(plan, areas[10 * i : 10 * i + 10])
    info = dataset_writer.finish_dataset(plans)
    assert info["counts"] == {"ok": 29, "rejected": 1}
    assert info["codes"] == {"rejected": {"mask_area": 1}}
    assert info["samples"] == 29
    rows = storage.read_table(str(tmp_path / "north" / "manifest.parquet")).to_pylist()
    (far,) = [row for row in rows if row["status"] == "rejected"]
    assert far["image_id"] == "13"
    assert "covers 0.680 of the image, the median of this dataset is 0.25" in far["message"]
    index = storage.read_table(str(tmp_path / "north" / "index.parquet")).column("image_id").to_pylist()
    assert index == [record.image_id for record in records if record.image_id != "13"]


# Unrelated files


def test_unrelated_files_stay_unchanged(own_archive: Path, tmp_path: Path) -> None:
    strange = [tmp_path / "out" / "north" / name for name in ("mine.tar", "old/north-000009.tar", "notes.json")]
    for path in strange:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    dataset_writer.write_datasets(plan_shards(sources.discover(str(own_archive)), str(tmp_path / "out"), SMALL, 2))
    assert [path.read_bytes() for path in strange] == [b"mine"] * 3


def test_a_dataset_is_not_written_into_its_archive(own_archive: Path) -> None:
    before = contents(own_archive)
    plans = plan_shards(sources.discover(str(own_archive)), str(own_archive), SMALL, 2)
    with pytest.raises(InputError, match="north holds files of the archive"):
        dataset_writer.begin_datasets(plans)
    assert contents(own_archive) == before


@pytest.mark.parametrize(
    ("old", "new"), [('"preprocess"', '"preproces"'), ('"size": 64', '"size": 96'), ('"inputs": 5', '"inputs": 6')]
)
def test_a_changed_dataset_json_is_refused(old: str, new: str, own_prepared: Path) -> None:
    path = own_prepared / "north" / "dataset.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ShardError, match=r"dataset\.json: changed or damaged"):
        catalog.open_dataset(str(own_prepared / "north"))


@pytest.mark.parametrize("change", ['"finding": null', '"inputs_digest"'])
def test_a_changed_part_is_written_again(change: str, archive: Path, prepared: Path, own_prepared: Path) -> None:
    path = own_prepared / "north" / "parts" / "north-000000.json"
    assert change in path.read_text()
    path.write_text(path.read_text().replace(change, change.replace("i", "I").replace("inputs", "input")))
    dataset_writer.write_datasets(plan_shards(sources.discover(str(archive)), str(own_prepared), SMALL, 2))
    assert contents(own_prepared) == contents(prepared)


def test_unfinished_datasets_are_skipped_with_a_warning(own_prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    (own_prepared / "south" / "dataset.json").unlink()
    assert catalog.list_unfinished(str(own_prepared)) == [str(own_prepared / "south")]
    assert catalog.find_datasets([str(own_prepared)]) == [str(own_prepared / "north")]
    assert "south: not finished, skipped" in caplog.text


@pytest.mark.parametrize("content", ['{"labels": {"background": 0}, "numTraining": 4}', "[]", "{"])
def test_dataset_json_of_another_program_is_no_dataset(content: str, own_prepared: Path) -> None:
    (own_prepared / "Dataset101").mkdir()
    (own_prepared / "Dataset101" / "dataset.json").write_text(content)
    names = [str(own_prepared / name) for name in ("north", "south")]
    assert catalog.list_datasets(str(own_prepared)) == names
    assert catalog.list_datasets(str(own_prepared / "Dataset101")) == []
    with pytest.raises(InputError, match=r"no dataset\.json of lungseg in it"):
        catalog.find_datasets([str(own_prepared / "Dataset101")])


@pytest.mark.parametrize("content", ["{", "{}", '{"schema": 1}'])
def test_damaged_or_old_dataset_json_is_not_skipped(content: str, own_prepared: Path) -> None:
    (own_prepared / "north" / "dataset.json").write_text(content)
    assert str(own_prepared / "north") in catalog.list_datasets(str(own_prepared))
    with pytest.raises(InputError):
        catalog.open_dataset(str(own_prepared / "north"))


# Growing


def test_added_images_go_to_new_tars_only(own_archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    late = own_archive / "north" / "images" / "north_00.png"
    away = late.rename(tmp_path / "away.png")
    dataset_writer.write_datasets(plan_shards(sources.discover(str(own_archive)), str(out), SMALL, 2))
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*.tar")}
    old = catalog.open_dataset(str(out / "north")).index
    away.rename(late)
    dataset_writer.write_datasets(plan_shards(sources.discover(str(own_archive)), str(out), SMALL, 2))
    after = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*.tar")}
    assert {path: after[path] for path in before} == before
    assert [path.name for path in sorted(after.keys() - before.keys())] == ["north-000002.tar"]
    new = catalog.open_dataset(str(out / "north")).index
    assert new.slice(0, old.num_rows).equals(old)
    assert new.column("image_id").to_pylist()[old.num_rows :] == ["north_00"]


# Opening


def test_an_index_from_another_run_is_refused(own_prepared: Path, archive: Path, tmp_path: Path) -> None:
    other = PreprocessSettings(size=64, histogram="equalize")
    dataset_writer.write_datasets(plan_shards(sources.discover(str(archive)), str(tmp_path / "other"), other, 2))
    shutil.copy(tmp_path / "other" / "north" / "index.parquet", own_prepared / "north" / "index.parquet")
    with pytest.raises(ShardError, match=r"index\.parquet: does not belong to north-000000\.tar and the other tars"):
        catalog.open_dataset(str(own_prepared / "north"))


def test_an_index_with_swapped_rows_is_refused(own_prepared: Path) -> None:
    """Otherwise patients would silently be in the wrong fold."""
    path = str(own_prepared / "north" / "index.parquet")
    table = storage.read_table(path)
    ids = table.column("image_id").to_pylist()
    ids[0], ids[1] = ids[1], ids[0]
    storage.write_table(path, table.set_column(0, table.schema.field(0), pa.array(ids)))
    with pytest.raises(ShardError, match="does not belong to"):
        catalog.open_dataset(str(own_prepared / "north"))


# Finding datasets


def test_datasets_are_found_directly_and_in_a_folder(prepared: Path) -> None:
    north, south = str(prepared / "north"), str(prepared / "south")
    assert catalog.find_datasets([str(prepared)]) == [north, south]
    assert catalog.find_datasets([south, north]) == [south, north]
    assert catalog.find_datasets([south, str(prepared)]) == [south, north]


def test_unprepared_folders_are_refused(own_prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nope: no such folder: prepare it first"):
        catalog.find_datasets([str(tmp_path / "nope")])
    with pytest.raises(InputError, match="a file, expected a folder"):
        catalog.find_datasets([str(own_prepared / "north" / "north-000000.tar")])
    (own_prepared / "north" / "dataset.json").unlink()
    assert catalog.find_datasets([str(own_prepared)]) == [str(own_prepared / "south")]
    with pytest.raises(InputError, match="not prepared, or not finished"):
        catalog.find_datasets([str(own_prepared / "south"), str(own_prepared / "north")])


def test_preparing_through_uris_writes_the_same_tars(archive: Path, prepared: Path, tmp_path: Path) -> None:
    """Paths and URIs of the same files must give identical tars."""
    records = sources.discover(archive.as_uri())
    dataset_writer.write_datasets(plan_shards(records, (tmp_path / "out").as_uri(), SMALL, 2))
    tars = {name: content for name, content in contents(prepared).items() if name.endswith(".tar")}
    assert {name: content for name, content in contents(tmp_path / "out").items() if name.endswith(".tar")} == tars
    assert catalog.find_datasets([(tmp_path / "out").as_uri()]) == [
        (tmp_path / "out" / name).as_uri() for name in ("north", "south")
    ]


# In a bucket


def uploaded(archive: Path, bucket: str, images_per_shard: int) -> str:
    """Prepare the dataset `north` of five images into a bucket."""
    records = [record for record in sources.discover(str(archive)) if record.dataset == "north"]
    out = f"{bucket}/{images_per_shard}"
    dataset_writer.write_datasets(plan_shards(records, out, SMALL, images_per_shard))
    return f"{out}/north"


def test_opening_a_bucket_takes_as_many_requests_for_any_tars(
    archive: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [uploaded(archive, bucket, images_per_shard) for images_per_shard in (3, 1)]
    requests = []
    for folder, tars in zip(folders, (2, 5), strict=True):
        store = os.environ["AWS_ENDPOINT_URL"]
        with refusing(store, 0.0, seed=0) as (address, count), monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", address)
            assert len(set(catalog.open_dataset(folder).index.column("shard").to_pylist())) == tars
        requests.append(count.requests)
    assert requests[0] == requests[1]


def test_a_tar_that_is_missing_in_a_bucket_is_refused(archive: Path, bucket: str) -> None:
    folder = uploaded(archive, bucket, 1)
    storage.delete(f"{folder}/north-000003.tar")
    with pytest.raises(ShardError, match=r"north-000003\.tar: 0 bytes, expected \d+: missing or truncated"):
        catalog.open_dataset(folder)
