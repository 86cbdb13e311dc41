"""The audit reads the images that it compares from the tars, within and across datasets."""

import shutil
from pathlib import Path

import cv2
import pytest

from lungseg.config import PreprocessSettings
from lungseg.dataset import catalog, duplicate_audit
from lungseg.dataset.duplicate_audit import audit_datasets
from lungseg.errors import ShardError
from lungseg.ingest import sources
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards

SMALL = PreprocessSettings(size=128)


def audited(archive: Path, out: Path) -> list[tuple[str, str, str]]:
    dataset_writer.write_datasets(plan_shards(sources.discover(str(archive)), str(out), SMALL, 3))
    pairs = audit_datasets([catalog.open_dataset(folder) for folder in catalog.find_datasets([str(out)])])
    return [(pair.first, pair.second, pair.kind) for pair in pairs]


def test_copies_are_found_within_and_across_datasets(own_archive: Path, tmp_path: Path) -> None:
    assert audited(own_archive, tmp_path / "before") == []
    for kind in ("images", "masks"):
        north, south = own_archive / "north" / kind, own_archive / "south" / kind
        shutil.copy(north / "north_01.png", south / "south_91.png")
        image = cv2.imread(str(north / "north_03.png"), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(south / "south_92.png"), cv2.resize(image, (300, 330), interpolation=cv2.INTER_NEAREST))
    assert audited(own_archive, tmp_path / "after") == [
        ("north/north_01", "south/south_91", "exact"),
        ("north/north_03", "south/south_92", "near"),
    ]


def test_an_older_copy_of_a_dataset_is_tolerated(own_archive: Path, tmp_path: Path) -> None:
    audited(own_archive, tmp_path)
    shutil.copytree(tmp_path / "north", tmp_path / "north-older")
    images = own_archive / "north" / "images"
    image = cv2.flip(cv2.imread(str(images / "north_03.png"), cv2.IMREAD_UNCHANGED), 1)
    for name, size in (("north_92.png", (300, 330)), ("north_93.png", (310, 341))):  # the copy has neither of them
        cv2.imwrite(str(images / name), cv2.resize(image, size, interpolation=cv2.INTER_NEAREST))
    assert ("north/north_92", "north/north_93", "near") in audited(own_archive, tmp_path)


def test_a_damaged_tar_is_named(own_archive: Path, tmp_path: Path) -> None:
    shutil.copy(own_archive / "north" / "images" / "north_01.png", own_archive / "south" / "images" / "south_91.jpg")
    image = cv2.imread(str(own_archive / "north" / "images" / "north_01.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(own_archive / "south" / "images" / "south_91.jpg"), image)
    assert audited(own_archive, tmp_path) == [("north/north_01", "south/south_91", "near")]
    path = tmp_path / "north" / "north-000000.tar"
    content = bytearray(path.read_bytes())
    for position in range(600, len(content), 512):
        content[position] ^= 1
    path.write_bytes(bytes(content))
    opened = [catalog.open_dataset(folder) for folder in catalog.find_datasets([str(tmp_path)])]
    with pytest.raises(ShardError, match=r"north-000000\.tar"):
        audit_datasets(opened)


def test_a_study_uses_the_audit_of_the_preparation(
    own_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(own_archive / "north" / "images" / "north_01.png", own_archive / "south" / "images" / "south_91.png")
    audited(own_archive, tmp_path / "data")
    data = [catalog.open_dataset(folder) for folder in catalog.find_datasets([str(tmp_path / "data")])]
    pairs = duplicate_audit.linked_images(data, str(tmp_path / "data"))
    assert [pair["kind"] for pair in pairs] == ["exact"]
    monkeypatch.setattr(duplicate_audit, "find_pairs", lambda *_: [])
    assert duplicate_audit.linked_images(data, str(tmp_path / "study")) == pairs
    # Fewer images, or a damaged table, are searched again.
    assert duplicate_audit.linked_images(data[:1], str(tmp_path / "part")) == []
    for folder in ("data", "study"):
        (tmp_path / folder / "duplicates.parquet").write_bytes(b"damaged")
    assert duplicate_audit.linked_images(data, str(tmp_path / "study")) == []
    assert "duplicates.parquet: not a Parquet file, or a damaged one" in caplog.text
