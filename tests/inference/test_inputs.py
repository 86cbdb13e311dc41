"""Items of a folder, a listing, a manifest, prepared data and a single image."""

import shutil
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lungseg import storage
from lungseg.config import InferSettings, ListingColumns, PreprocessSettings
from lungseg.errors import InputError, SettingsError
from lungseg.imaging import phantom
from lungseg.inference import inputs
from lungseg.inference.inputs import describe_reference, list_items, stat_files
from lungseg.inference.items import Item, open_item
from lungseg.ingest import sources
from lungseg.report import console, prediction_results

SMALL = PreprocessSettings(size=64)


def items_of(archive: Path, key: bytes | None = None, **changes: object) -> list[Item]:
    return list(list_items(InferSettings.model_validate({"archive": str(archive), **changes}), SMALL, key))


def write_listing(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def test_folder_lists_images_with_masks_and_stats(archive: Path) -> None:
    items = items_of(archive)
    images = sorted(archive.rglob("images/*"))
    assert [item.record.image_uri for item in items] == [str(path) for path in images]
    for item, image in zip(items, images, strict=True):
        mask = image.parents[1] / "masks" / image.name
        assert item.files() == (str(image), str(mask))
        assert item.stats == tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in (image, mask))


def test_single_image_is_named_after_file_and_folder(archive: Path) -> None:
    path = archive / "south" / "images" / "south_01.png"
    (item,) = items_of(path)
    assert (item.record.image_id, item.record.dataset, item.record.mask_uris) == ("south_01", "images", ())
    assert item.stats == ((path.stat().st_size, path.stat().st_mtime_ns),)


def test_pattern_matches_path_below_the_folder(archive: Path) -> None:
    assert {item.record.dataset for item in items_of(archive, pattern="south/*")} == {"south"}
    assert [item.record.image_id for item in items_of(archive, pattern="*_04.png")] == ["north_04"]
    below = items_of(archive / "north", pattern="images/north_0[01].png")
    assert [item.record.image_id for item in below] == ["north_00", "north_01"]


def test_pattern_without_a_match_is_refused(archive: Path) -> None:
    with pytest.raises(InputError, match=r"no path in it matches --pattern west/\*"):
        items_of(archive, pattern="west/*")


def test_pattern_selects_prepared_images(prepared: Path) -> None:
    assert [item.record.image_id for item in items_of(prepared, pattern="*#south_02")] == ["south_02"]


def test_items_of_a_listing_have_the_order_and_the_flags_of_its_rows(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_PIECE", 2)
    names = ["north_02", "north_00", "north_03", "north_01"]
    masks = ["", *(f"{archive}/north/masks/{name}.png" for name in names[1:])]
    rows = [f"{archive}/north/images/{name}.png,{mask}" for name, mask in zip(names, masks, strict=True)]
    path = write_listing(tmp_path / "list.csv", "image,mask", *rows)
    items = items_of(path)
    assert [item.record.image_id for item in items] == names
    assert [item.record.flags for item in items] == [("no_mask",), (), (), ()]
    assert all(None not in item.stats for item in items)


def test_listing_gives_one_item_per_row(archive: Path, tmp_path: Path) -> None:
    path = write_listing(
        tmp_path / "list.csv",
        "image,mask,patient_id",
        f"{archive}/north/images/north_00.png,{archive}/north/masks/north_00.png,p1",
        f"{archive}/north/images/gone.png,,p2",
        f"{archive}/north/images/north_00.png,,p1",
        ",,p3",
    )
    items = {"".join(item.record.codes) + item.record.image_id: item for item in items_of(path)}
    assert len(items) == 4
    complete = items.pop("north_00")
    assert [Path(uri).name for uri in complete.files()] == ["north_00.png", "north_00.png"]
    assert None not in complete.stats
    assert items.pop("gone").stats == (None,)
    assert sorted(name.removesuffix("north_00") for name in items) == [
        "listed_twice",
        "no_imagerow_0000004_without_image",
    ]
    assert {item.record.status for item in items.values()} == {"rejected"}


def test_image_with_one_lung_annotated_is_predicted(tmp_path: Path) -> None:
    several = PreprocessSettings(size=64, classes=("right_lung", "left_lung", "heart"))
    phantom.write_archive(tmp_path, 1, size=128, classes=several.classes)
    folder, name = "phantom-montgomery", "PHANTOM_M_0000.png"
    path = write_listing(
        tmp_path / "list.csv",
        "image,right_lung,left_lung,heart",
        f"{folder}/images/{name},{folder}/right_lung_masks/{name},,{folder}/heart_masks/{name}",
    )
    (item,) = list_items(InferSettings(archive=str(path), checkpoint=("m",)), several)
    assert item.record.status == "ok"
    opened = open_item(item, several)
    assert opened.square is not None
    assert (opened.references.keys(), opened.record.codes[0]) == ({"heart"}, "one_sided_mask")
    assert "not compared: right_lung" in opened.record.message


def test_listing_columns_can_be_set(archive: Path, tmp_path: Path) -> None:
    path = write_listing(tmp_path / "list.csv", "film,patient", f"{archive}/south/images/south_00.png,p1")
    (item,) = items_of(path, columns=ListingColumns(image="film", patient_id="patient"))
    assert (item.record.image_id, item.record.patient_id) == ("south_00", "p1")
    with pytest.raises(InputError, match=r"no column image.* \(--columns\.image\)"):
        items_of(path)
    with pytest.raises(SettingsError, match=r"--columns\.\* needs a listing, but .* is none"):
        items_of(archive, columns=ListingColumns(image="film"))


def test_key_gives_listed_patients_pseudonyms(archive: Path, tmp_path: Path) -> None:
    names = ["north_00", "north_01", "north_02"]
    rows = [
        f"{archive}/north/images/{name}.png,{patient}" for name, patient in zip(names, ("p1", "p1", ""), strict=True)
    ]
    path = write_listing(tmp_path / "list.csv", "image,patient_id", *rows)
    plain, hidden = ([item.record.patient_id for item in items_of(path, key)] for key in (None, b"a long secret"))
    assert plain == ["p1", "p1", "north_02"]
    assert hidden[0] == hidden[1] != "p1"
    assert hidden[2] == "north_02"


def test_manifest_rows_are_checked_again_except_name_problems(prepared: Path, tmp_path: Path) -> None:
    table = storage.read_table(str(prepared / "north" / "manifest.parquet"))
    rows = table.to_pylist()
    rows[0] |= {
        "status": "rejected",
        "codes": ["mask_empty"],
        "message": "found by another version",
        "mask_area": None,
    }
    rows[1] |= {"status": "rejected", "codes": ["duplicate_id"], "message": "north_00.png has the id"}
    storage.write_table(str(tmp_path / "manifest.parquet"), table.from_pylist(rows, table.schema))
    records = [item.record for item in items_of(tmp_path / "manifest.parquet")]
    assert [record.image_id for record in records] == [row["image_id"] for row in rows]
    assert [record.status for record in records] == ["ok", "rejected", "ok", "ok", "ok"]
    assert records[1].codes == ("duplicate_id",)
    assert all(not record.pixel_digest and not record.codes for record in records if record.status == "ok")
    assert [record.mask_uris for record in records] == [tuple(row["mask_uris"]) for row in rows]


def test_parquet_file_without_manifest_columns_is_a_listing(archive: Path, tmp_path: Path) -> None:
    uris = [str(path) for path in sorted(archive.rglob("images/*"))[:2]]
    pq.write_table(pa.table({"image": uris}), tmp_path / "list.parquet")
    assert [item.record.image_uri for item in items_of(tmp_path / "list.parquet")] == uris


def test_prepared_data_gives_one_item_per_sample(prepared: Path) -> None:
    items = items_of(prepared)
    assert [item.record.image_id for item in items] == [f"north_{i:02d}" for i in range(5)] + [
        f"south_{i:02d}" for i in range(3)
    ]
    for item in items:
        tar = Path(item.tar)
        assert item.row is not None
        assert tar == prepared / item.record.dataset / f"{item.row['shard']}.tar"
        assert item.stats == ((tar.stat().st_size, tar.stat().st_mtime_ns),)
        assert item.record.image_uri == f"{tar}#{item.record.image_id}"
        assert item.record.pixel_digest


def test_data_with_other_preprocessing_is_refused(prepared: Path) -> None:
    with pytest.raises(InputError, match="prepared with other settings than the model's training data"):
        list(list_items(InferSettings(archive=str(prepared)), PreprocessSettings(size=80)))


def test_duplicate_id_is_a_rejected_item(own_archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = sources.discover(str(own_archive / "south"))
    monkeypatch.setattr(sources, "discover", lambda *_, **__: [*records, records[0]])
    items = items_of(own_archive / "south")
    assert len(items) == len(records) + 1
    assert [item.record.status for item in items] == ["ok"] * len(records) + ["rejected"]
    assert items[-1].record.codes == ("duplicate_id",)


def test_missing_archive_is_refused(tmp_path: Path) -> None:
    for name in ("missing", "missing.png", "missing.csv"):
        with pytest.raises(InputError, match="no such folder or file"):
            items_of(tmp_path / name)


def test_missing_files_have_no_stat(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    uris = {str(tmp_path / name): name for name in ("file", "dangling", "missing", "")} | {"": "no name"}
    listed = {uris[uri]: stat for uri, stat in stat_files(set(uris)).items()}
    assert listed.pop("file") == (3, (tmp_path / "file").stat().st_mtime_ns)
    assert set(listed.values()) == {None}


def test_pattern_selects_before_the_duplicate_check(tmp_path: Path, draw_pair: Any) -> None:
    image, _ = draw_pair(1, 70, 70)
    for name in ("a.bmp", "a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), image)
    settings = InferSettings(archive=str(tmp_path), pattern="*.png")
    listed = list(list_items(settings, PreprocessSettings(size=64)))
    assert [(item.record.image_id, item.record.status) for item in listed] == [("a", "ok"), ("b", "ok")]


def test_empty_listing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image\n")
    with pytest.raises(InputError, match="no rows"):
        list(list_items(InferSettings(archive=str(tmp_path / "list.csv")), PreprocessSettings(size=64)))


def test_prepared_data_beside_images_is_refused(prepared: Path, tmp_path: Path, archive: Path) -> None:
    both = Path(shutil.copytree(prepared, tmp_path / "both"))
    shutil.copy(archive / "south" / "images" / "south_00.png", both / "more.png")
    with pytest.raises(InputError, match=r"contains prepared data .* and 1 image \(first: .*more.png\)"):
        items_of(both)


def test_bucket_stats_come_from_one_listing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = {f"{bucket}/films/{name}" for name in ("a.png", "two words.png", "gone.png")}
    for uri in uris:
        storage.write_bytes(uri.replace(" ", "%20"), b"abc")
    storage.delete(f"{bucket}/films/gone.png")
    named = {uri.replace(" ", "%20") for uri in uris}
    settings = stat_files(named)
    assert sum(stat is None for stat in settings.values()) == 1
    requests: list[str] = []
    monkeypatch.setattr(storage, "try_stat", requests.append)
    assert stat_files(named, f"{bucket}/films") == settings
    assert requests == [f"{bucket}/films/gone.png"]


def test_dataset_of_nnunet_is_an_archive(own_archive: Path) -> None:
    folder = own_archive / "north"
    (folder / "images").rename(folder / "imagesTr")
    (folder / "masks").rename(folder / "labelsTr")
    (folder / "dataset.json").write_text('{"labels": {"background": 0, "lung": 255}, "file_ending": ".png"}')
    items = items_of(folder)
    assert [(item.record.dataset, item.record.mask_values) for item in items] == [("north", ("255",))] * 5


def test_unmatched_masks_and_missing_masks_are_items(own_archive: Path) -> None:
    (own_archive / "north" / "images" / "north_00.png").unlink()
    (own_archive / "north" / "masks" / "north_01.png").unlink()
    records = {item.record.image_id: item.record for item in items_of(own_archive / "north")}
    assert records["north_00_unmatched_mask"].codes == ("unmatched_mask",)
    assert records["north_01"].flags == ("no_mask",)
    assert {len(record.flags) for record in records.values()} == {0, 1}


@pytest.mark.parametrize("pattern", ["images/\u00e9*", "images/e\u0301*"])
def test_pattern_matches_names_in_one_unicode_form(pattern: str, own_archive: Path) -> None:
    images = own_archive / "north" / "images"
    (images / "north_00.png").rename(images / "e\u0301.png")
    assert len(items_of(own_archive / "north", pattern=pattern)) == 1


def test_the_reference_of_predictions_is_named(archive: Path, prepared: Path, predicted: Path) -> None:
    assert describe_reference(items_of(archive)) == "original mask"
    assert describe_reference(items_of(prepared)) == "prepared mask enlarged to native size"
    about = prediction_results.read_predictions(str(predicted)).about
    assert "at native size, reference: original mask, threshold 0.5" in console.describe_metrics(about)
