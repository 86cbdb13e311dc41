"""Damage of prepared data is found when a dataset is opened or a sample is read."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from lungseg import storage
from lungseg.dataset import catalog, shard_format
from lungseg.errors import InputError, ShardError
from lungseg.imaging import codecs, geometry as geometry_module
from lungseg.schema import SCHEMA
from tests.prepare.prepared_files import read_all


def boundary(path: Path) -> int:
    with tarfile.open(path) as tar:
        return list(tar)[3].offset


@pytest.mark.parametrize("cut", ["boundary", "middle", "last byte", "empty", "missing"])
def test_truncated_shard_does_not_open(cut: str, own_prepared: Path) -> None:
    path = own_prepared / "north" / "north-000001.tar"
    content = path.read_bytes()
    size = {"boundary": boundary(path), "middle": len(content) // 2, "last byte": len(content) - 1}.get(cut, 0)
    path.write_bytes(content[:size])
    if cut == "boundary":
        # tarfile accepts a file that is cut at a member's start, so sizes are compared.
        with tarfile.open(path) as tar:
            assert len(tar.getmembers()) == 3
    if cut == "missing":
        path.unlink()
    with pytest.raises(ShardError, match=rf"north-000001\.tar: {size} bytes, expected {len(content)}"):
        catalog.open_dataset(str(own_prepared / "north"))


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_flipped_byte_is_detected_on_read(kind: str, own_prepared: Path) -> None:
    folder = own_prepared / "north"
    row = catalog.open_dataset(str(folder)).index.to_pylist()[2]
    path = folder / f"{row['shard']}.tar"
    content = path.read_bytes()
    offset, size = shard_format.member_ranges(row)[kind]
    place = offset + size // 2
    path.write_bytes(content[:place] + bytes([content[place] ^ 0x20]) + content[place + 1 :])
    with pytest.raises(ShardError, match=rf"{row['shard']}\.tar#{row['image_id']}: the {kind} is damaged"):
        read_all(folder)


def test_flipped_byte_in_json_never_causes_a_bug(prepared: Path) -> None:
    data = catalog.open_dataset(str(prepared / "north"))
    row = data.index.to_pylist()[0]
    path = prepared / "north" / f"{row['shard']}.tar"
    members = {
        name: storage.read_range(str(path), offset, size)
        for name, (offset, size) in shard_format.member_ranges(row).items()
    }
    text = members["json"]
    refusals = 0
    for place in range(len(text)):
        damaged = {**members, "json": text[:place] + bytes([text[place] ^ 0x02]) + text[place + 1 :]}
        try:
            shard_format.decode_sample(damaged, "x.tar")
        except ShardError:
            refusals += 1
    assert refusals > len(text) / 3


@pytest.mark.parametrize("name", ["dataset.json", "index.parquet"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_dataset_without_index_or_dataset_json_does_not_open(name: str, damage: str, own_prepared: Path) -> None:
    path = own_prepared / "north" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        catalog.open_dataset(str(own_prepared / "north"))


def test_dataset_of_another_schema_does_not_open(own_prepared: Path) -> None:
    path = own_prepared / "north" / "dataset.json"
    path.write_text(path.read_text().replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}'))
    with pytest.raises(InputError, match=f"schema {SCHEMA + 1}"):
        catalog.open_dataset(str(own_prepared / "north"))


def good_members() -> dict[str, bytes]:
    meta = {
        "schema": SCHEMA,
        **{"image_id": "a", "dataset": "n", "patient_id": "p", "finding": None, "pixel_digest": "0"},
        "geometry": dict(zip(geometry_module.Geometry.__dataclass_fields__, (8, 8, 8, 8, 0, 0, 8, 1), strict=True)),
    }
    square = np.eye(8, dtype=np.uint8)
    return {
        "image": codecs.encode_image(square),
        "mask": codecs.encode_mask(square),
        "json": json.dumps(meta).encode(),
    }


def test_members_are_decoded_to_a_sample() -> None:
    sample = shard_format.decode_sample(good_members(), "x.tar")
    assert (sample.image_id, sample.dataset, sample.patient_id, sample.finding) == ("a", "n", "p", None)
    np.testing.assert_array_equal(sample.image, np.eye(8))
    np.testing.assert_array_equal(sample.masks, [np.eye(8)])
    assert (sample.image.dtype, sample.geometry.size) == (np.uint8, 8)
    bare = {name: content for name, content in good_members().items() if name != "mask"}
    assert shard_format.decode_sample(bare, "x.tar").masks is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"json": b""},
        {"json": b"\xff\xfe"},
        {"json": b"[]"},
        {"json": b"17"},
        {"json": b'{"schema": 1}'},
        {"json": b'{"schema": 2}'},
        {"json": good_members()["json"].replace(b'"top"', b'"tip"')},
        {"json": good_members()["json"].replace(b'"patient_id"', b'"patient"')},
        {"image": b""},
        {"image": good_members()["image"][:-30]},
        {"image": b"not an image at all"},
        {"mask": good_members()["mask"][:-20]},
    ],
)
def test_damaged_member_is_refused(wrong: dict[str, bytes]) -> None:
    with pytest.raises(ShardError, match=r"x\.tar: not a sample at the offsets of the index"):
        shard_format.decode_sample({**good_members(), **wrong}, "x.tar")


@pytest.mark.parametrize("missing", ["image", "json"])
def test_missing_member_is_refused(missing: str) -> None:
    members = good_members()
    del members[missing]
    with pytest.raises(ShardError, match=r"x\.tar"):
        shard_format.decode_sample(members, "x.tar")
