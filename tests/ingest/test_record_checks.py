"""Records are completed, repaired, flagged or rejected from their files; no record is lost."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from lungseg.imaging import codecs, phantom
from lungseg.imaging.dicom.pseudonym import pseudonym
from lungseg.ingest import record_checks
from lungseg.schema import Record
from tests.imaging.dicom.dicom_files import write_dicom

IMAGE, MASK = (np.ascontiguousarray(array) for array in phantom.draw(5, "montgomery", 96))
IMAGE = np.maximum(IMAGE, 1)
MASK = MASK * np.uint8(255)
LEFT = MASK * (np.arange(96) < 48).astype(np.uint8)
AREAS = st.one_of(st.none(), st.floats(0.15, 0.35))
MakeRecord = Callable[..., Record]


def png(array: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


@pytest.fixture
def make_record(tmp_path: Path) -> MakeRecord:
    """Return a function that writes an image and masks, bytes or arrays, and returns their record; None: no file."""

    def write(name: str, content: NDArray[Any] | bytes | None) -> str:
        (tmp_path / name).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else png(content))
        return str(tmp_path / name)

    def record(image: NDArray[Any] | bytes | None, *masks: NDArray[Any] | bytes | None) -> Record:
        uris = tuple(write(f"mask{number}.png", mask) for number, mask in enumerate(masks))
        return Record("case", "north", write("case.png", image), uris, patient_id="patient")

    return record


def test_good_record_is_completed(make_record: MakeRecord) -> None:
    record = make_record(IMAGE, MASK)
    checked, image, mask = record_checks.open_record(record)
    expected = {"pixel_digest": codecs.pixel_digest(IMAGE), "mask_area": checked.mask_area}
    assert checked == replace(record, height=96, width=96, **expected)
    assert (checked.status, checked.codes, checked.message) == ("ok", (), "")
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(mask, [MASK // 255])


def test_bit_depth_is_kept(make_record: MakeRecord) -> None:
    image_16 = IMAGE.astype(np.uint16) * 257
    _, image, mask = record_checks.open_record(make_record(image_16))
    assert mask is None
    np.testing.assert_array_equal(image, image_16)


def test_two_masks_are_joined(make_record: MakeRecord) -> None:
    _, _, mask = record_checks.open_record(make_record(IMAGE, LEFT, MASK - LEFT))
    np.testing.assert_array_equal(mask, [MASK // 255])


def test_one_empty_mask_of_two_is_accepted(make_record: MakeRecord) -> None:
    checked, _, mask = record_checks.open_record(make_record(IMAGE, MASK * 0, MASK))
    assert checked.status == "ok"
    np.testing.assert_array_equal(mask, [MASK // 255])


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        (b"", "rejected", "undecodable"),
        (b"no image", "rejected", "undecodable"),
        (png(IMAGE)[:-900], "rejected", "undecodable"),
        (cv2.imencode(".tiff", IMAGE.astype(np.float32))[1].tobytes(), "rejected", "depth"),
        (cv2.resize(IMAGE, (31, 31)), "rejected", "too_small"),
        (IMAGE[:38], "rejected", "extreme_aspect"),
        (np.full((96, 96), 77, np.uint8), "rejected", "blank"),
        (None, "failed", "unreadable"),
    ],
)
def test_unusable_image_is_rejected_or_failed(
    image: NDArray[Any] | bytes | None, status: str, code: str, make_record: MakeRecord
) -> None:
    checked, opened, mask = record_checks.open_record(make_record(image, MASK))
    assert (checked.status, checked.codes) == (status, (code,))
    assert "case.png" in checked.message
    assert opened is None
    assert mask is None
    assert (checked.height, checked.width, checked.pixel_digest) == (0, 0, "")


def test_smallest_allowed_image_is_accepted(make_record: MakeRecord) -> None:
    assert record_checks.open_record(make_record(cv2.resize(IMAGE, (32, 32))))[0].status == "ok"


@pytest.mark.parametrize(
    ("mask", "status", "code"),
    [
        (b"", "rejected", "undecodable"),
        (b"no image", "rejected", "undecodable"),
        (MASK[:-5], "rejected", "mask_size"),
        (np.flipud(MASK), "rejected", "mask_orientation"),
        (MASK * 0, "rejected", "mask_empty"),
        (MASK * 0 + 255, "rejected", "mask_full"),
        (None, "failed", "unreadable"),
    ],
)
def test_unusable_mask_keeps_the_image(
    mask: NDArray[Any] | bytes | None, status: str, code: str, make_record: MakeRecord
) -> None:
    checked, image, opened = record_checks.open_record(make_record(IMAGE, mask))
    assert (checked.status, checked.codes) == (status, (code,))
    assert opened is None
    np.testing.assert_array_equal(image, IMAGE)
    assert (checked.height, checked.width) == (96, 96)
    assert checked.pixel_digest


def test_second_mask_is_checked_too(make_record: MakeRecord) -> None:
    checked, _, _ = record_checks.open_record(make_record(IMAGE, MASK, MASK[:-5]))
    assert checked.codes == ("mask_size",)
    assert checked.message.startswith("mask mask1.png is 91x96, its image is 96x96 (case)")


def test_masks_that_fill_the_image_together_are_refused(make_record: MakeRecord) -> None:
    top, bottom = np.zeros_like(MASK), np.zeros_like(MASK)
    top[:50], bottom[50:] = 255, 255
    assert record_checks.open_record(make_record(IMAGE, top, bottom))[0].codes == ("mask_full",)


def test_rejected_record_is_not_opened(make_record: MakeRecord) -> None:
    record = replace(make_record(None), status="rejected", codes=("one_sided_mask",))
    assert record_checks.open_record(record) == (record, None, None)


def test_bug_is_raised(make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "pixel_digest", None)
    with pytest.raises(TypeError):
        record_checks.open_record(make_record(IMAGE, MASK))


def test_only_the_first_record_of_an_id_is_kept() -> None:
    records = [
        Record("a", "n", "/1.png"),
        Record("b", "n", "/2.png"),
        Record("a", "n", "/3.png"),
        Record("a", "s", "/4.png"),
    ]
    checked = record_checks.reject_duplicate_ids(records)
    assert [record.status for record in checked] == ["ok", "ok", "rejected", "ok"]
    assert checked[2].codes == ("duplicate_id",)
    assert checked[2].message.startswith("1.png already has the id a")
    assert [replace(record, status="ok", codes=(), message="") for record in checked] == records


def test_record_of_an_earlier_plan_keeps_its_id() -> None:
    records = [Record("a", "n", f"/a.{end}") for end in ("gif", "jpg", "png")]
    checked = record_checks.reject_duplicate_ids(
        records, {("n", "/a.jpg"): "a", ("n", "/a.png"): "b", ("s", "/a.png"): "a"}
    )
    assert [record.status for record in checked] == ["rejected", "ok", "rejected"]
    assert all(checked[i].message.startswith("a.jpg already has the id a") for i in (0, 2))
    assert [
        record.status for record in record_checks.reject_duplicate_ids([records[1]] * 2, {("n", "/a.jpg"): "a"})
    ] == [
        "ok",
        "rejected",
    ]
    one_sided = replace(records[1], status="rejected", codes=("one_sided_mask",))
    for earlier_ids in ({("n", "/gone.png"): "a"}, {("n", one_sided.image_uri): "a"}):
        checked = record_checks.reject_duplicate_ids([records[0], one_sided, records[2]], earlier_ids)
        assert checked[:2] == [records[0], one_sided]
        assert checked[2].message.startswith("a.gif")


def test_repairs_of_image_and_mask_are_recorded(make_record: MakeRecord) -> None:
    mask = MASK.copy()
    mask[1:3, 1:3] = 255
    checked, image, labels = record_checks.open_record(make_record(np.dstack([255 - IMAGE] * 3), mask))
    assert checked.status == "repaired"
    assert checked.codes == ("grey_as_colour", "inverted", "mask_specks")
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(labels, [MASK // 255])
    assert checked.mask_area == pytest.approx(MASK.mean() / 255)


def test_image_repairs_stay_recorded_when_the_mask_is_rejected(make_record: MakeRecord) -> None:
    checked, image, labels = record_checks.open_record(make_record(255 - IMAGE, np.zeros_like(MASK)))
    assert (checked.status, labels) == ("rejected", None)
    np.testing.assert_array_equal(image, IMAGE)
    assert checked.codes == ("mask_empty", "inverted")


def test_unusual_mask_is_flagged_or_rejected(make_record: MakeRecord) -> None:
    mask = MASK.copy()
    mask[48:54, 25:71] = 255
    record = make_record(IMAGE, mask)
    assert record_checks.open_record(record)[0].flags == ("mask_one_component",)
    strict, image, _ = record_checks.open_record(record, odd_masks="reject")
    assert (strict.status, strict.codes) == ("rejected", ("mask_one_component",))
    assert image is not None


def test_dicom_tags_fill_empty_fields_only(make_record: MakeRecord) -> None:
    content = write_dicom(IMAGE, PatientAge="047Y", PatientSex="F", ViewPosition="PA", PatientID="P-1")
    record = replace(make_record(content), patient_id="case", sex="male")
    key = b"0123456789abcdef"
    checked, _, _ = record_checks.open_record(record, key=key)
    assert (checked.age_group, checked.sex, checked.view) == ("40-49", "male", "PA")
    assert checked.patient_id == pseudonym("P-1", key)
    assert record_checks.open_record(record)[0].patient_id == ""  # without a key; the image id is a file name
    assert (
        record_checks.open_record(replace(record, patient_id="of the archive"), key=key)[0].patient_id
        == "of the archive"
    )


def test_file_listed_twice_is_rejected_once() -> None:
    record = Record("a", "n", "/1.png")
    assert [checked.status for checked in record_checks.reject_duplicate_ids([record, record])] == ["ok", "rejected"]


@given(st.lists(AREAS, max_size=60), st.randoms(use_true_random=False))
def test_outliers_do_not_depend_on_the_order(areas: list[float | None], random: Any) -> None:
    outliers = record_checks.area_outliers(areas)
    assert len(outliers) == len(areas)
    assert not any(is_outlier for area, is_outlier in zip(areas, outliers, strict=True) if area is None)
    order = list(range(len(areas)))
    random.shuffle(order)
    assert record_checks.area_outliers([areas[i] for i in order]) == [outliers[i] for i in order]
    known = [area for area in areas if area is not None]
    if len(known) < 20:
        assert not any(outliers)
    else:  # at least half are within the median deviation
        assert 2 * sum(outliers) <= len(known)


@pytest.mark.parametrize("spread", [0.0, 0.001, 0.02])
@pytest.mark.parametrize("distant", [0.02, 0.69])
def test_only_the_distant_area_is_an_outlier(spread: float, distant: float) -> None:
    areas: list[float | None] = [0.25 + spread * np.sin(number) for number in range(30)]
    assert not any(record_checks.area_outliers(areas))
    assert record_checks.area_outliers([*areas, None, distant]) == [False] * 31 + [True]


def test_area_near_identical_ones_is_no_outlier() -> None:
    assert not any(record_checks.area_outliers([0.25] * 30 + [0.25 * 1.15, 0.25 / 1.15]))
    assert record_checks.area_outliers([0.25] * 30 + [0.25 * 1.4])[-1]


def test_fewer_than_twenty_areas_have_no_outliers() -> None:
    assert not any(record_checks.area_outliers([0.25] * 18 + [0.6]))
    assert record_checks.area_outliers([0.25] * 19 + [0.6])[-1]


def test_unknown_words_in_tags_become_flags(make_record: MakeRecord) -> None:
    pixels = IMAGE.astype(np.uint16) * 16
    record = make_record(write_dicom(pixels, BodyPartExamined="ROOM 7", ViewPosition="Q"))
    checked, _, _ = record_checks.open_record(replace(record, view="SOMEHOW"))
    assert (checked.status, checked.flags) == ("ok", ("view_unknown", "body_part_unknown"))


def test_listed_views_are_checked_without_the_listing(make_record: MakeRecord) -> None:
    """A manifest is read without the listing that it came from."""
    for view, code in (("LATERALE", "lateral_view"), ("L", "lateral_view"), ("OBL", "oblique_view")):
        checked, image, _ = record_checks.open_record(replace(make_record(IMAGE), view=view))
        assert (checked.status, checked.codes, image) == ("rejected", (code,), None)


def test_missing_masks_are_flagged_where_others_exist() -> None:
    masked = Record("a", "north", "/x/a.png", ("/m/a.png",), ("lung",))
    heart = Record("b", "north", "/x/b.png", ("/m/b.png",), ("heart",))
    rejected = Record("c", "north", "/x/c.png", status="rejected")
    elsewhere = Record("d", "south", "/x/d.png")
    flagged = [*record_checks.flag_missing_masks([masked, heart, rejected, elsewhere])]
    assert [record.flags for record in flagged] == [(), ("no_mask",), (), ()]
