"""Prepared tars: readable by webdataset, reproducible, resumable, and damage is detected."""

import gc
import json
import os
import tarfile
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import webdataset

from lungseg import storage
from lungseg.config import PreprocessSettings
from lungseg.dataset import catalog, shard_format
from lungseg.dataset.sample_reader import SampleReader
from lungseg.errors import InputError
from lungseg.imaging import codecs, geometry as geometry_module
from lungseg.ingest import record_checks, sources
from lungseg.prepare import dataset_writer, shard_writer
from lungseg.prepare.shard_plan import ShardPlan, plan_shards
from lungseg.schema import SCHEMA
from tests.prepare.prepared_files import read_all

SMALL = PreprocessSettings(size=64)


def planned(
    archive: Path, out: Path, settings: PreprocessSettings = SMALL, images_per_shard: int = 2
) -> list[ShardPlan]:
    return plan_shards(sources.discover(str(archive)), str(out), settings, images_per_shard)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tar_stats(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of every tar, which change when it is written again."""
    stats = {path: path.stat() for path in folder.rglob("*.tar")}
    return {path.name: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def read_with_webdataset(folder: Path) -> list[dict[str, Any]]:
    """Read all tars below a folder with plain webdataset."""
    tars = sorted(str(path) for path in folder.rglob("*.tar"))
    with warnings.catch_warnings():
        # webdataset does not close its files.
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset(tars, shardshuffle=False))
        gc.collect()
    return samples


# Content


def test_webdataset_reads_prepared_tars(archive: Path, prepared: Path) -> None:
    assert len(list(prepared.glob("*/*.tar"))) == 5
    samples = read_with_webdataset(prepared)
    records = {record.image_id: record for record in sources.discover(str(archive))}
    assert [sample["__key__"] for sample in samples] == sorted(records)
    for sample in samples:
        assert {name for name in sample if not name.startswith("__")} == {"image.png", "mask.png", "json"}
        record = records[sample["__key__"]]
        checked, native, native_mask = record_checks.open_record(record)
        assert native is not None
        assert native_mask is not None
        square, geometry = geometry_module.prepare_image(native, SMALL)
        mask = geometry_module.prepare_mask(native_mask[0], geometry)
        np.testing.assert_array_equal(codecs.decode(sample["image.png"], "x"), square)
        np.testing.assert_array_equal(codecs.decode_mask(sample["mask.png"], "x"), mask)
        assert set(np.unique(cv2.imdecode(np.frombuffer(sample["mask.png"], np.uint8), -1))) == {0, 255}
        meta = json.loads(sample["json"])
        assert meta["schema"] == SCHEMA
        assert (meta["image_id"], meta["dataset"]) == (record.image_id, record.dataset)
        assert meta["pixel_digest"] == checked.pixel_digest
        assert (meta["geometry"]["native_height"], meta["geometry"]["native_width"]) == native.shape


def test_index_has_the_ranges_of_all_members(prepared: Path) -> None:
    for folder in catalog.find_datasets([str(prepared)]):
        data = catalog.open_dataset(folder)
        by_tar: dict[str, list[dict[str, Any]]] = {}
        for row in data.index.to_pylist():
            by_tar.setdefault(row["shard"], []).append(row)
        for name, rows in by_tar.items():
            with tarfile.open(Path(folder) / f"{name}.tar") as tar:
                members = {member.name: (member.offset_data, member.size) for member in tar}
            kinds = {"image": "image.png", "json": "json", "mask": "mask.png"}
            assert members == {
                f"{row['image_id']}.{kinds[kind]}": place
                for row in rows
                for kind, place in shard_format.member_ranges(row).items()
            }


def test_members_have_no_time_or_owner_and_are_grouped(prepared: Path) -> None:
    for path in prepared.glob("*/*.tar"):
        with tarfile.open(path) as tar:
            members = list(tar)
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.isreg()) for m in members} == {
            (0, 0, 0, "", "", 0o644, True)
        }
        keys = [member.name.split(".")[0] for member in members]
        assert keys == [key for key in dict.fromkeys(keys) for _ in range(3)]


def test_image_without_mask_is_prepared(own_archive: Path, tmp_path: Path) -> None:
    (own_archive / "south" / "masks" / "south_01.png").unlink()
    dataset_writer.write_datasets(planned(own_archive, tmp_path / "out"))
    data = catalog.open_dataset(str(tmp_path / "out" / "south"))
    rows = data.index.to_pylist()
    assert [set(shard_format.member_ranges(row)) for row in rows] == [
        {"image", "mask", "json"},
        {"image", "json"},
        {"image", "mask", "json"},
    ]
    reader = SampleReader([data])
    assert [reader.read(position).masks is None for position in range(3)] == [False, True, False]
    info = storage.read_json(str(tmp_path / "out" / "south" / "dataset.json"))
    assert (info["samples"], info["with_mask"]) == (3, 2)


def test_flags_of_rejected_images_are_not_counted(own_archive: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        (own_archive / "south" / "masks" / f"south_0{number}.png").unlink()
    (own_archive / "south" / "images" / "south_02.png").write_bytes(b"no picture")
    records = [*record_checks.flag_missing_masks(sources.discover(str(own_archive)))]
    dataset_writer.write_datasets(plan_shards(records, str(tmp_path), SMALL, images_per_shard=2))
    info = storage.read_json(str(tmp_path / "south" / "dataset.json"))
    assert (info["counts"], info["flags"]["no_mask"]) == ({"ok": 2, "rejected": 1}, 1)


def test_long_names_are_prepared(own_archive: Path, tmp_path: Path) -> None:
    """An id of three nested UIDs is longer than the 100 characters of an old tar header."""
    name = "/".join(f"1.2.276.0.7230010.3.1.4.8323329.3990.1517874340.{n:06d}" for n in (1, 22, 333))
    for kind in ("images", "masks"):
        target = own_archive / "south" / kind / f"{name}.png"
        target.parent.mkdir(parents=True)
        (own_archive / "south" / kind / "south_00.png").rename(target)
    dataset_writer.write_datasets(planned(own_archive, tmp_path / "out"))
    data = catalog.open_dataset(str(tmp_path / "out" / "south"))
    (long,) = (row["image_id"] for row in data.index.to_pylist() if len(row["image_id"]) > 100)
    read_all(tmp_path / "out" / "south")
    assert long in {sample["__key__"] for sample in read_with_webdataset(tmp_path / "out" / "south")}


def test_dataset_json_describes_the_dataset(archive: Path, prepared: Path) -> None:
    for name, count in (("north", 5), ("south", 3)):
        folder = prepared / name
        info = storage.read_json(str(folder / "dataset.json"))
        assert info["dataset"] == name
        assert info["counts"] == {"ok": count}
        assert info["samples"] == info["with_mask"] == count == sum(shard["samples"] for shard in info["shards"])
        data = catalog.open_dataset(str(folder))
        assert (data.name, data.preprocess, data.digest) == (name, SMALL, info["digest"])
        rows = storage.read_table(str(folder / "manifest.parquet")).to_pylist()
        assert [row["image_uri"] for row in rows] == [str(p) for p in sorted((archive / name / "images").iterdir())]


# Reproducible and resumable


def test_two_runs_write_the_same_bytes(archive: Path, prepared: Path, tmp_path: Path) -> None:
    dataset_writer.write_datasets(planned(archive, tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(prepared)


def test_order_of_shards_does_not_change_bytes(archive: Path, prepared: Path, tmp_path: Path) -> None:
    plans = planned(archive, tmp_path / "out")
    for plan in reversed(plans):
        shard_writer.write_shard(plan)
    dataset_writer.write_datasets(plans)
    assert contents(tmp_path / "out") == contents(prepared)


@pytest.mark.parametrize("done", [1, 2, 4])
def test_run_stopped_between_shards_is_resumed(done: int, archive: Path, prepared: Path, tmp_path: Path) -> None:
    plans = planned(archive, tmp_path / "out")
    for plan in plans[:done]:
        shard_writer.write_shard(plan)
    before = tar_stats(tmp_path / "out")
    assert len(before) == done
    dataset_writer.write_datasets(plans)
    after = tar_stats(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert contents(tmp_path / "out") == contents(prepared)


def test_run_stopped_between_tar_and_part_is_resumed(
    archive: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = planned(archive, tmp_path / "out")

    write = storage.write_json

    def killed(path: str, value: dict[str, Any], **_: Any) -> None:
        if path.endswith("north-000000.json"):
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            shard_writer.write_shard(plans[0])
    assert list(contents(tmp_path / "out" / "north")) == ["north-000000.tar", "parts/north-000000.begun.json"]
    dataset_writer.write_datasets(plans)
    assert contents(tmp_path / "out") == contents(prepared)


def test_finished_dataset_is_not_written_again(archive: Path, own_prepared: Path) -> None:
    plans = planned(archive, own_prepared)
    before, bytes_before = tar_stats(own_prepared), contents(own_prepared)
    dataset_writer.write_datasets(plans)
    assert tar_stats(own_prepared) == before
    assert contents(own_prepared) == bytes_before


@pytest.mark.parametrize("deaths", [1, 2, 5])
def test_tar_is_written_after_worker_deaths(deaths: int, archive: Path, prepared: Path, tmp_path: Path) -> None:
    plans = planned(archive, tmp_path / "out")
    storage.write_json(str(tmp_path / "out" / "north" / "parts" / "north-000000.begun.json"), {"times": deaths})
    dataset_writer.write_datasets(plans)
    assert contents(tmp_path / "out") == contents(prepared)


def test_too_many_worker_deaths_are_an_error(archive: Path, tmp_path: Path) -> None:
    plans = planned(archive, tmp_path / "out")
    path = tmp_path / "out" / "north" / "parts" / "north-000000.begun.json"
    storage.write_json(str(path), {"times": 6})
    with pytest.raises(
        InputError,
        match=r"north-000000\.tar: 6 workers died while they processed it.*run the same command to try again",
    ):
        shard_writer.write_shard(plans[0])
    assert not path.exists()
    assert not shard_writer.write_shard(plans[0])["kept"]


@pytest.mark.parametrize("content", [b"", b'{"schema": 1, "inputs_digest": "', b"[]", b'{"schema": 99}'])
def test_damaged_part_is_replaced(content: bytes, archive: Path, prepared: Path, own_prepared: Path) -> None:
    (own_prepared / "north" / "parts" / "north-000001.json").write_bytes(content)
    dataset_writer.write_datasets(planned(archive, own_prepared))
    assert contents(own_prepared) == contents(prepared)


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "empty"])
def test_damaged_tar_is_replaced(damage: str, archive: Path, prepared: Path, own_prepared: Path) -> None:
    path = own_prepared / "north" / "north-000001.tar"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = content[:700] + bytes([content[700] ^ 1]) + content[701:]
        path.write_bytes({"cut": content[:-512], "flipped": flipped, "empty": b""}[damage])
    before = tar_stats(own_prepared)
    dataset_writer.write_datasets(planned(archive, own_prepared))
    assert contents(own_prepared) == contents(prepared)
    after = tar_stats(own_prepared)
    assert [name for name in after if after[name] != before.get(name)] == ["north-000001.tar"]


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_changed_file_replaces_its_shard_only(kind: str, own_archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dataset_writer.write_datasets(planned(own_archive, out))
    before, tars = tar_stats(out), contents(out)
    path = own_archive / "north" / kind / "north_02.png"
    stat = path.stat()
    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    array[:40] = 255 if kind == "masks" else array[:40][::-1]
    cv2.imwrite(str(path), array)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    dataset_writer.write_datasets(planned(own_archive, out))
    after = tar_stats(out)
    assert [name for name in after if after[name] != before[name]] == ["north-000001.tar"]
    assert contents(out)["north/north-000001.tar"] != tars["north/north-000001.tar"]
    assert contents(out)["north/dataset.json"] != tars["north/dataset.json"]
    assert contents(out)["south/dataset.json"] == tars["south/dataset.json"]
    read_all(out / "north")


def test_other_settings_leave_the_dataset_as_it_is(archive: Path, own_prepared: Path) -> None:
    before = contents(own_prepared)
    other = PreprocessSettings(size=64, geometry="crop", histogram="percentile")
    with pytest.raises(InputError, match=r"geometry pad, now crop; --preprocess\.histogram none, now percentile"):
        planned(archive, own_prepared, other)
    assert contents(own_prepared) == before


def test_removed_inputs_leave_no_tar_behind(own_archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dataset_writer.write_datasets(planned(own_archive, out))
    for number in (0, 1, 4):
        (own_archive / "north" / "images" / f"north_{number:02d}.png").unlink()
    dataset_writer.write_datasets(planned(own_archive, out))
    data = catalog.open_dataset(str(out / "north"))
    assert data.index.column("image_id").to_pylist() == ["north_02", "north_03"]
    read_all(out / "north")
    # A reader of `*.tar` must not find old samples.
    assert len(list((out / "north").glob("*.tar"))) == len(list((out / "north" / "parts").iterdir())) == 1


def test_failed_inputs_are_tried_again(own_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = storage.read_bytes

    def read_most(path: str) -> bytes:
        if path.endswith("images/north_00.png"):
            raise InputError(f"{path}: cannot be read (the network is away)")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", read_most)
        dataset_writer.write_datasets(planned(own_archive, tmp_path / "out"))
    assert catalog.open_dataset(str(tmp_path / "out" / "north")).index.num_rows == 4
    dataset_writer.write_datasets(planned(own_archive, tmp_path / "out"))
    assert catalog.open_dataset(str(tmp_path / "out" / "north")).index.num_rows == 5


def test_dataset_of_another_archive_is_not_overwritten(own_archive: Path, own_prepared: Path) -> None:
    before = contents(own_prepared)
    with pytest.raises(InputError, match="holds a dataset of another archive"):
        dataset_writer.write_datasets(planned(own_archive, own_prepared))
    assert contents(own_prepared) == before


# Every input has a row


def test_manifest_lists_every_input_with_its_reason(own_archive: Path, tmp_path: Path) -> None:
    north = own_archive / "north"
    (north / "images" / "truncated.png").write_bytes((north / "images" / "north_00.png").read_bytes()[:500])
    (north / "images" / "north_00.jpg").write_bytes(b"the same id")
    mask = cv2.imread(str(north / "masks" / "north_01.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(north / "masks" / "north_01.png"), mask * 0)
    cv2.imwrite(str(north / "masks" / "north_03.png"), mask)
    records = record_checks.reject_duplicate_ids(sources.discover(str(own_archive)))
    removed = own_archive / "south" / "images" / "south_02.png"
    removed.unlink()
    plans = plan_shards(records, str(tmp_path / "out"), SMALL, 3)
    dataset_writer.write_datasets(plans)
    tables = [storage.read_table(str(tmp_path / "out" / name / "manifest.parquet")) for name in ("north", "south")]
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["image_uri"] for row in rows] == [record.image_uri for record in records]
    codes = Counter((row["status"], "".join(row["codes"])) for row in rows)
    # north_00.jpg comes first and is damaged; north_00.png is rejected for its duplicate id.
    assert codes == {
        ("ok", ""): 4,
        ("rejected", "undecodable"): 2,
        ("rejected", "duplicate_id"): 1,
        ("rejected", "mask_empty"): 1,
        ("rejected", "mask_size"): 1,
        ("failed", "unreadable"): 1,
    }
    infos = [storage.read_json(str(tmp_path / "out" / name / "dataset.json")) for name in ("north", "south")]
    assert sum(count for info in infos for count in info["counts"].values()) == len(records)
    index = [
        row["image_id"]
        for name in ("north", "south")
        for row in catalog.open_dataset(str(tmp_path / "out" / name)).index.to_pylist()
    ]
    assert index == [row["image_id"] for row in rows if row["status"] == "ok"]


def test_dataset_without_usable_input_is_an_error(own_archive: Path, tmp_path: Path) -> None:
    for path in (own_archive / "south" / "images").iterdir():
        path.write_bytes(b"not an image")
    plans = [plan for plan in planned(own_archive, tmp_path / "out") if plan.folder.endswith("south")]
    with pytest.raises(InputError, match=r"south: none of 3 inputs is usable \(rejected: 3 undecodable\)"):
        dataset_writer.write_datasets(plans)
    rows = storage.read_table(str(tmp_path / "out" / "south" / "manifest.parquet")).to_pylist()
    assert [row["status"] for row in rows] == ["rejected"] * 3
    with pytest.raises(InputError, match=r"no dataset\.json"):
        catalog.find_datasets([str(tmp_path / "out")])


def test_dataset_with_no_usable_input_left_does_not_open(own_archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dataset_writer.write_datasets(planned(own_archive, out))
    for path in (own_archive / "south" / "images").iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(InputError):
        dataset_writer.write_datasets(planned(own_archive, out))
    with pytest.raises(InputError):
        catalog.open_dataset(str(out / "south"))


def test_unmatched_masks_are_in_the_manifest_and_no_tar(own_archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (own_archive / "north" / "images" / "north_00.png").rename(tmp_path / "away.png")
    dataset_writer.write_datasets(planned(own_archive, out))
    info = storage.read_json(str(out / "north" / "dataset.json"))
    assert (info["inputs"], info["codes"]["rejected"]["unmatched_mask"]) == (5, 1)
    manifest = storage.read_table(str(out / "north" / "manifest.parquet"))
    assert manifest.column("image_uri").to_pylist()[-1] == str(own_archive / "north" / "masks" / "north_00.png")
    assert sum(shard["samples"] for shard in info["shards"]) == 4


def test_dataset_json_of_another_program_is_not_replaced(own_archive: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "out" / "south" / "dataset.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text('{"labels": {"background": 0, "lung": 1}}')
    with pytest.raises(InputError, match=r"south has a dataset\.json of another program: pass another --out"):
        dataset_writer.write_datasets(planned(own_archive, tmp_path / "out"))
    assert "background" in foreign.read_text()


def test_folds_of_the_archive_are_in_the_index(own_archive: Path, tmp_path: Path) -> None:
    records = [replace(record, fold=number % 3) for number, record in enumerate(sources.discover(str(own_archive)))]
    dataset_writer.write_datasets(plan_shards(records, str(tmp_path / "out"), PreprocessSettings(size=64), 2))
    index = catalog.open_dataset(str(tmp_path / "out" / "north")).index
    assert index.column("fold").to_pylist() == [0, 1, 2, 0, 1]
