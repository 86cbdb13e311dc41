"""A growing archive: added images go to new tars, and the existing tars keep their bytes."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from lungseg.config import PrepareSettings, PreprocessSettings
from lungseg.pipelines import prepare
from lungseg.storage import read_table

SMALL = PreprocessSettings(size=64)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.tar"))}


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}


def _ids(manifest: Path) -> dict[str, str]:
    """Return the image ids of an archive by file name."""
    return {Path(row["image_uri"]).name: row["image_id"] for row in read_table(str(manifest)).to_pylist()}


def _mirror(source: Path, to: Path) -> None:
    """Save a mirrored image under another name, which may have another format."""
    with Image.open(source) as image:
        image.convert("L").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(to)


def test_added_file_with_an_existing_id_is_rejected(ray_cluster: None, own_archive: Path, tmp_path: Path) -> None:
    images = own_archive / "north" / "images"
    settings = PrepareSettings(source=str(own_archive), out=str(tmp_path / "out"), preprocess=SMALL, images_per_shard=2)
    prepare.run(settings)
    before = _bytes(tmp_path / "out")
    for name in ("north_01.jpg", "north_05.jpg"):  # one sorts before the .png with the same id, one is new
        Image.open(images / "north_03.png").save(images / name)
    for _ in range(2):
        prepare.run(settings)
        after = _bytes(tmp_path / "out")
        assert {name: after[name] for name in before} == before
        assert sorted(after.keys() - before.keys()) == ["north/north-000003.tar"]
        rows = read_table(str(tmp_path / "out" / "north" / "manifest.parquet")).to_pylist()
        refused = {
            Path(row["image_uri"]).name: (row["codes"], row["message"]) for row in rows if row["status"] == "rejected"
        }
        assert list(refused) == ["north_01.jpg"]
        assert refused["north_01.jpg"][0] == ["duplicate_id"]
        assert refused["north_01.jpg"][1].startswith("north_01.png already has the id north_01")


@pytest.mark.parametrize("appended", [True, False])
def test_grown_listing_keeps_its_tars(ray_cluster: None, own_archive: Path, tmp_path: Path, appended: bool) -> None:
    images = own_archive / "north" / "images"
    header = "image,mask,patient_id,view"
    rows = [f"{path},{path.parent.parent}/masks/{path.name},,PA" for path in sorted(images.iterdir())]
    rows = [*rows, f"{images}/lateral.png,,,LL", ",,nobody,", rows[0]]
    (tmp_path / "list.csv").write_text("\n".join([header, *rows]))
    out = tmp_path / "out"
    settings = PrepareSettings(listing=str(tmp_path / "list.csv"), out=str(out), preprocess=SMALL, images_per_shard=2)
    prepare.run(settings)
    before, times, old = _bytes(out), _times(out), _ids(out / "list" / "manifest.parquet")
    assert old["north_01.png"] == "north_01"
    _mirror(images / "north_01.png", images / "north_01.bmp.png")
    _mirror(images / "north_01.png", images / "north_01.jpg")  # a second file with the same stem
    _mirror(images / "north_02.png", own_archive / "north_02.tif")  # its stem is an existing id
    added = [
        *sorted((own_archive / "south" / "images").iterdir()),
        *images.glob("north_01.[bj]*"),
        own_archive / "north_02.tif",
    ]
    more = [*(f"{path},,," for path in added), *([",,,"] * 9)]
    (tmp_path / "list.csv").write_text("\n".join([header, *rows, *more] if appended else [header, *more, *rows]))
    for _ in range(2):
        prepare.run(settings)
        after, ids = _bytes(out), _ids(out / "list" / "manifest.parquet")
        assert {name: after[name] for name in before} == before
        assert len(after) > len(before)
        assert {name: ids[name] for name in old if name} == {name: old[name] for name in old if name}
        if appended:  # the ids of unusable rows contain row numbers, which change if rows are inserted before them
            assert {path: _times(out)[path] for path in times} == times
    rows_after = read_table(str(out / "list" / "index.parquet")).to_pylist()
    assert len({row["image_id"] for row in rows_after}) == len(rows_after) == 5 + len(added)
    assert {row["patient_id"] for row in rows_after} == {row["image_id"] for row in rows_after}


def test_masks_stay_with_their_own_image(ray_cluster: None, own_archive: Path, tmp_path: Path) -> None:
    settings = PrepareSettings(source=str(own_archive), out=str(tmp_path / "out"), preprocess=SMALL, images_per_shard=2)
    prepare.run(settings)
    before, times = _bytes(tmp_path / "out"), _times(tmp_path / "out")
    for kind in ("images", "masks"):  # both sort before the .png
        folder = own_archive / "north" / kind
        _mirror(folder / "north_01.png", folder / "north_01.gif")
    prepare.run(settings)
    after = _bytes(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert {path: _times(tmp_path / "out")[path] for path in times} == times


def test_added_mask_changes_one_tar(ray_cluster: None, own_archive: Path, tmp_path: Path) -> None:
    mask = own_archive / "north" / "masks" / "north_02.png"
    shutil.move(mask, tmp_path / "later.png")
    settings = PrepareSettings(source=str(own_archive), out=str(tmp_path / "out"), preprocess=SMALL, images_per_shard=2)
    prepare.run(settings)
    before = _bytes(tmp_path / "out")
    shutil.move(tmp_path / "later.png", mask)
    prepare.run(settings)
    after = _bytes(tmp_path / "out")
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == ["north/north-000001.tar"]
