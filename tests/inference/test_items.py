"""Open items: intact, changed, damaged and missing files; JSON round trips."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st

from lungseg import storage
from lungseg.config import PreprocessSettings
from lungseg.dataset import catalog
from lungseg.imaging import codecs, phantom
from lungseg.imaging.geometry import prepare_image, prepare_mask
from lungseg.inference.items import Item, OpenedImage, open_item, prepared_item, with_stats
from lungseg.ingest import sources
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.schema import Geometry, Record

SMALL = PreprocessSettings(size=64)
SEVERAL = PreprocessSettings(size=64, classes=("right_lung", "left_lung", "heart", "opacity"))
texts = st.text(max_size=8)
numbers = st.integers(-4096, 4096)
stats = st.none() | st.tuples(st.integers(0, 2**40), st.integers(0, 2**62))
records = st.builds(
    Record,
    texts,
    texts,
    texts,
    st.lists(texts, max_size=3).map(tuple),
    st.lists(texts, max_size=3).map(tuple),
    finding=st.none() | texts,
    spacing_mm=st.none() | st.floats(0.01, 10),
    height=st.integers(0, 4096),
    status=st.sampled_from(["ok", "repaired", "rejected", "failed"]),
    codes=st.lists(texts, max_size=3).map(tuple),
    message=texts,
    flags=st.lists(texts, max_size=3).map(tuple),
)
rows = st.none() | st.dictionaries(texts, st.none() | texts | numbers, max_size=3)
items = st.builds(Item, records, texts, rows, st.lists(stats, max_size=3).map(tuple))
geometries = st.none() | st.builds(Geometry, *[numbers] * 7)
opened_images = st.builds(OpenedImage, records, st.none(), geometries, st.dictionaries(texts, texts), st.floats(0, 1e6))


def planned(folder: Path | str, dataset: str = "") -> list[Item]:
    """List the items of an archive with the present stats of their files."""
    listed = [Item(record) for record in sources.discover(str(folder), dataset)]
    return with_stats(listed, {uri: storage.try_stat(uri) for item in listed for uri in item.files()})


def planned_samples(folder: Path) -> list[Item]:
    data = catalog.open_dataset(catalog.find_datasets([str(folder)])[0])
    return [prepared_item(data.folder, row) for row in data.index.to_pylist()]


def test_sample_has_the_flags_of_its_index_row(prepared: Path) -> None:
    data = catalog.open_dataset(catalog.find_datasets([str(prepared)])[0])
    row = {**data.index.to_pylist()[0], "flags": ["mask_uneven"]}
    assert open_item(prepared_item(data.folder, row), PreprocessSettings(size=64)).record.flags == ("mask_uneven",)


def code(opened: OpenedImage) -> str:
    return opened.record.codes[0]


def append(path: str) -> None:
    """Change the size of a file without an effect on its decoded content."""
    with Path(path.removeprefix("file://")).open("ab") as file:
        file.write(b"\0")


@given(items)
def test_item_survives_json(item: Item) -> None:
    assert Item.from_dict(json.loads(json.dumps(item.to_dict()))) == item


@given(opened_images)
def test_opened_image_survives_json(opened: OpenedImage) -> None:
    assert OpenedImage.from_json(opened.to_json()) == opened


def test_square_is_not_in_the_json(archive: Path) -> None:
    opened = open_item(planned(archive)[0], SMALL)
    assert opened.square is not None
    assert OpenedImage.from_json(opened.to_json()) == replace(opened, square=None)


def test_item_lists_its_files(archive: Path, prepared: Path) -> None:
    record = planned(archive)[0].record
    assert Item(record).files() == (record.image_uri, *record.mask_uris)
    assert len(record.mask_uris) == 1
    sample = planned_samples(prepared)[0]
    assert sample.files() == (sample.tar,)
    assert Path(sample.tar).is_file()


def test_stats_are_in_file_order() -> None:
    item = Item(Record("a", "north", "image", ("left", "right")))
    (restored,) = with_stats([item], {"right": (3, 3), "image": (1, 1), "left": None})
    assert restored.stats == ((1, 1), None, (3, 3))


def test_image_is_preprocessed_as_in_prepare(archive: Path) -> None:
    for item in planned(archive):
        opened = open_item(item, SMALL)
        image = cv2.imread(item.record.image_uri, cv2.IMREAD_GRAYSCALE)
        square, geometry = prepare_image(image, SMALL)
        assert opened.record.status == "ok"
        assert opened.geometry == geometry
        assert (opened.square == square).all()
        assert opened.record.pixel_digest == codecs.pixel_digest(image)
        assert (opened.record.height, opened.record.width) == image.shape
        assert opened.seconds > 0


def test_reference_is_the_mask_at_native_size(archive: Path) -> None:
    for item in planned(archive):
        opened = open_item(item, SMALL)
        mask = cv2.imread(item.record.mask_uris[0], cv2.IMREAD_GRAYSCALE) // 255
        assert opened.references.keys() == {"lung"}
        assert (codecs.decode_rle(opened.references["lung"], *mask.shape) == mask).all()


def test_image_without_a_mask_has_no_reference(archive: Path) -> None:
    record = replace(planned(archive)[0].record, mask_uris=(), mask_classes=())
    opened = open_item(Item(record), SMALL)
    assert (opened.record.status, opened.references) == ("ok", {})
    assert opened.square is not None


def test_only_masks_of_the_classes_are_references(archive: Path) -> None:
    item = planned(archive)[0]
    heart = replace(item, record=replace(item.record, mask_classes=("heart",)))
    opened = open_item(heart, PreprocessSettings(size=64, classes=("right_lung", "left_lung")))
    assert (opened.record.status, opened.references) == ("ok", {})
    assert open_item(heart, PreprocessSettings(size=64, classes=("heart", "lung"))).references.keys() == {"heart"}


def test_a_mask_of_both_lungs_is_a_reference_of_each(archive: Path) -> None:
    opened = open_item(planned(archive)[0], PreprocessSettings(size=64, classes=("right_lung", "left_lung")))
    shape = opened.record.height, opened.record.width
    masks = {name: codecs.decode_rle(counts, *shape) for name, counts in opened.references.items()}
    assert masks.keys() == {"right_lung", "left_lung", "lung"}
    assert (masks["right_lung"] + masks["left_lung"] == masks["lung"]).all()


def first_sample(records: list[Record], out: Path, classes: tuple[str, ...]) -> Item:
    """Prepare records with these classes; return the first item."""
    preprocess = PreprocessSettings(size=64, classes=classes)
    dataset_writer.write_datasets(plan_shards(records, str(out), preprocess, images_per_shard=8))
    (data,) = map(catalog.open_dataset, catalog.find_datasets([str(out)]))
    return prepared_item(data.folder, data.index.to_pylist()[0], classes=classes)


@pytest.mark.parametrize("stored", [("right_lung", "left_lung", "heart"), ("lung",)])
def test_prepared_lungs_are_references_of_any_lungs(stored: tuple[str, ...], archive: Path, tmp_path: Path) -> None:
    item = first_sample(sources.discover(str(archive / "north"), "north", stored), tmp_path, stored)
    of_lungs = open_item(item, SMALL).references
    of_sides = open_item(item, PreprocessSettings(size=64, classes=("right_lung", "left_lung", "opacity"))).references
    assert of_lungs.keys() == {"lung"}
    assert of_sides.keys() == {"lung", "right_lung", "left_lung"}
    assert of_sides["lung"] == of_lungs["lung"]


def test_a_prepared_heart_is_no_reference_of_lungs(archive: Path, tmp_path: Path) -> None:
    listed = sources.discover(str(archive / "north"), "north")
    item = first_sample([replace(one, mask_classes=("heart",)) for one in listed], tmp_path, ("heart",))
    assert Item.from_dict(json.loads(json.dumps(item.to_dict()))) == item
    assert open_item(item, SMALL).references == {}
    assert open_item(item, PreprocessSettings(size=64, classes=("heart", "lung"))).references.keys() == {"heart"}


@pytest.mark.parametrize("location", ["local", "behind a URI"])
def test_unchanged_files_are_opened(location: str, archive: Path) -> None:
    north = archive / "north"
    restored = planned(str(north) if location == "local" else north.as_uri(), "north")
    assert [open_item(item, SMALL).record.status for item in restored] == ["ok"] * 5


@pytest.mark.parametrize("number", [0, 1], ids=["image", "mask"])
@pytest.mark.parametrize("location", ["local", "behind a URI"])
def test_file_of_changed_size_fails(location: str, number: int, own_archive: Path) -> None:
    north = own_archive / "north"
    damaged, intact, *_ = planned(str(north) if location == "local" else north.as_uri(), "north")
    uri, before = damaged.files()[number], damaged.stats[number]
    append(uri)
    opened = open_item(damaged, SMALL)
    assert (opened.record.status, code(opened)) == ("failed", "changed")
    assert (opened.square, opened.geometry, opened.references) == (None, None, {})
    assert before is not None
    assert opened.record.message.startswith(
        f"{uri} had {before[0]} bytes when the job was planned and has {before[0] + 1} bytes now"
    )
    assert open_item(intact, SMALL).record.status == "ok"


def test_local_file_with_later_time_has_changed(own_archive: Path) -> None:
    item = planned(own_archive)[0]
    size, time = storage.stat(item.record.image_uri)
    os.utime(item.record.image_uri, ns=(time + 10**9, time + 10**9))
    assert storage.stat(item.record.image_uri)[0] == size
    assert code(open_item(item, SMALL)) == "changed"


def test_only_the_size_is_compared_behind_a_uri(own_archive: Path) -> None:
    item = planned((own_archive / "north").as_uri(), "north")[0]
    path = item.record.image_uri.removeprefix("file://")
    os.utime(path, ns=(10**18, 10**18))
    assert open_item(item, SMALL).record.status == "ok"


@pytest.mark.parametrize("location", ["local", "behind a URI"])
def test_file_missing_at_planning_has_changed(location: str, own_archive: Path) -> None:
    north = own_archive / "north"
    item = planned(str(north) if location == "local" else north.as_uri(), "north")[0]
    opened = open_item(replace(item, stats=(None, item.stats[1])), SMALL)
    assert (opened.record.status, code(opened)) == ("failed", "changed")
    assert "did not exist when the job was planned" in opened.record.message


def test_item_without_stats_is_opened(archive: Path) -> None:
    assert open_item(Item(planned(archive)[0].record), SMALL).record.status == "ok"


@pytest.mark.parametrize("when", ["before planning", "after planning"])
def test_deleted_image_fails(when: str, own_archive: Path) -> None:
    item = planned(own_archive)[0]
    Path(item.record.image_uri).unlink()
    if when == "before planning":
        (item,) = with_stats([item], {uri: storage.try_stat(uri) for uri in item.files()})
        assert item.stats[0] is None
    opened = open_item(item, SMALL)
    assert (opened.record.status, code(opened)) == ("failed", "unreadable")
    assert item.record.image_uri in opened.record.message
    assert opened.square is None


def test_image_with_deleted_reference_can_be_predicted(own_archive: Path) -> None:
    item = planned(own_archive)[0]
    Path(item.record.mask_uris[0]).unlink()
    opened = open_item(item, SMALL)
    assert (opened.record.status, code(opened), opened.references) == ("failed", "unreadable", {})
    assert opened.square is not None
    assert opened.geometry is not None


def test_image_with_reference_of_wrong_size_can_be_predicted(own_archive: Path) -> None:
    record = planned(own_archive)[0].record
    cv2.imwrite(record.mask_uris[0], np.full((40, 70), 255, np.uint8))
    opened = open_item(Item(record), SMALL)
    assert (opened.record.status, code(opened), opened.references) == ("rejected", "mask_size", {})
    assert opened.square is not None


def several_classes(folder: Path) -> Record:
    """Return the record of a phantom with masks of the lungs, each lung, the heart and opacities."""
    phantom.write_archive(folder, 1, size=128, classes=SEVERAL.classes)
    return next(record for record in sources.discover(str(folder), classes=SEVERAL.classes) if record.mask_uris)


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [("heart", ["heart"]), ("right_lung", ["left_lung", "lung", "right_lung"])],
)
@pytest.mark.parametrize(("harm", "expected"), [("gone", "unreadable"), ("other size", "mask_size")])
def test_bad_file_of_a_class_leaves_the_other_references(
    kind: str, left_out: list[str], harm: str, expected: str, tmp_path: Path
) -> None:
    record = several_classes(tmp_path)
    before = open_item(Item(record), SEVERAL).references
    assert before.keys() == {*SEVERAL.classes, "lung"}
    bad = record.mask_uris[record.mask_classes.index(kind)]
    if harm == "gone":
        Path(bad).unlink()
    else:
        cv2.imwrite(bad, np.full((40, 70), 255, np.uint8))
    opened = open_item(Item(record), SEVERAL)
    assert opened.references == {name: mask for name, mask in before.items() if name not in left_out}
    assert code(opened) == expected
    assert f"not compared: {', '.join(left_out)}" in opened.record.message
    assert opened.record.mask_uris == record.mask_uris
    assert opened.square is not None


def test_two_bad_classes_are_both_named(tmp_path: Path) -> None:
    record = several_classes(tmp_path)
    heart, opacity = (record.mask_uris[record.mask_classes.index(kind)] for kind in ("heart", "opacity"))
    Path(heart).unlink()
    cv2.imwrite(opacity, np.full((40, 70), 255, np.uint8))
    opened = open_item(Item(record), SEVERAL).record
    assert {*opened.codes} >= {"unreadable", "mask_size"}
    assert "not compared: heart, opacity" in opened.message


def test_truncated_image_is_rejected(own_archive: Path) -> None:
    record = planned(own_archive)[0].record
    Path(record.image_uri).write_bytes(Path(record.image_uri).read_bytes()[:100])
    opened = open_item(Item(record), SMALL)
    assert (opened.record.status, opened.square, opened.geometry) == ("rejected", None, None)


def test_rejected_records_are_not_read(tmp_path: Path) -> None:
    record = Record("a", "north", str(tmp_path / "none.png"), status="rejected", codes=("duplicate_id",))
    opened = open_item(Item(record), SMALL)
    assert replace(opened, seconds=0.0) == OpenedImage(record)


def test_prepared_sample_has_native_size_and_square(archive: Path, prepared: Path) -> None:
    raw = {item.record.image_id: item for item in planned(archive)}
    for item in planned_samples(prepared):
        opened, original = open_item(item, SMALL), open_item(raw[item.record.image_id], SMALL)
        assert opened.record.status == "ok"
        assert opened.record.image_uri == f"{item.tar}#{item.record.image_id}"
        assert opened.geometry == original.geometry
        assert (opened.square == original.square).all()
        size = (opened.record.height, opened.record.width)
        assert size == (original.record.height, original.record.width)
        assert opened.record.pixel_digest == original.record.pixel_digest


def test_reference_of_prepared_sample_is_restored_to_native_size(archive: Path, prepared: Path) -> None:
    raw = {item.record.image_id: item for item in planned(archive)}
    for item in planned_samples(prepared):
        opened = open_item(item, SMALL)
        truth = cv2.imread(raw[item.record.image_id].record.mask_uris[0], cv2.IMREAD_GRAYSCALE) // 255
        assert opened.references.keys() == {"lung"}
        assert opened.geometry is not None
        restored = codecs.decode_rle(opened.references["lung"], *truth.shape)
        assert np.mean(restored != truth) < 0.02
        again = prepare_mask(restored, opened.geometry)
        assert np.mean(again != prepare_mask(truth, opened.geometry)) < 0.02


def test_prepared_sample_without_a_mask_has_no_reference(own_archive: Path, tmp_path: Path) -> None:
    shutil.rmtree(own_archive / "north" / "masks")
    listed = sources.discover(str(own_archive / "north"), "north")
    dataset_writer.write_datasets(plan_shards(listed, str(tmp_path / "out"), SMALL, images_per_shard=8))
    for item in planned_samples(tmp_path / "out"):
        opened = open_item(item, SMALL)
        assert (opened.record.status, opened.references) == ("ok", {})
        assert opened.square is not None


@pytest.mark.parametrize("member", ["image", "mask", "json"])
def test_damaged_sample_fails_and_its_neighbours_open(member: str, own_prepared: Path) -> None:
    damaged, *others = planned_samples(own_prepared)
    assert damaged.row is not None
    content = bytearray(Path(damaged.tar).read_bytes())
    content[damaged.row[f"{member}_offset"] + damaged.row[f"{member}_size"] // 2] ^= 0xFF
    Path(damaged.tar).write_bytes(content)
    opened = open_item(damaged, SMALL)
    assert (opened.record.status, code(opened), opened.square) == ("failed", "shard", None)
    assert "damaged" in opened.record.message
    assert [open_item(item, SMALL).record.status for item in others] == ["ok"] * len(others)


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_truncated_or_missing_tar_fails(harm: str, own_prepared: Path) -> None:
    (item, *_) = planned_samples(own_prepared)
    if harm == "cut":
        os.truncate(item.tar, 700)
    else:
        Path(item.tar).unlink()
    opened = open_item(item, SMALL)
    assert (opened.record.status, code(opened), opened.square) == ("failed", "shard", None)


def test_bug_is_raised(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(codecs, "pixel_digest", broken)
    with pytest.raises(ZeroDivisionError):
        open_item(planned(archive)[0], SMALL)
