"""Records checked against their files: each reason code, and that nothing is lost."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg.data import images, manifest
from lungseg.schema import Record

IMAGE = np.random.default_rng(0).integers(1, 200, (40, 50)).astype(np.uint8)
MASK = np.zeros((40, 50), np.uint8)
MASK[10:30, 5:20] = 255
Make = Callable[..., Record]


def png(array: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write an image and masks, bytes or arrays, and give their record; None is a file that is not there."""

    def write(name: str, content: NDArray[Any] | bytes | None) -> str:
        (tmp_path / name).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else png(content))
        return str(tmp_path / name)

    def record(image: NDArray[Any] | bytes | None, *masks: NDArray[Any] | bytes | None) -> Record:
        uris = tuple(write(f"mask{number}.png", mask) for number, mask in enumerate(masks))
        return Record("case", "north", write("case.png", image), uris, "patient")

    return record


def test_a_good_record_is_completed(make: Make) -> None:
    record = make(IMAGE, MASK)
    checked, image, mask = manifest.open_record(record)
    assert checked == replace(record, height=40, width=50, sha256=images.pixel_digest(IMAGE))
    assert (checked.status, checked.reason) == ("ok", "")
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(mask, MASK // 255)


def test_depth_is_kept(make: Make) -> None:
    deep = IMAGE.astype(np.uint16) * 300
    _, image, mask = manifest.open_record(make(deep))
    assert mask is None
    np.testing.assert_array_equal(image, deep)


def test_two_masks_are_joined(make: Make) -> None:
    left, right = np.zeros_like(MASK), np.zeros_like(MASK)
    left[5:20, 5:15], right[5:25, 12:40] = 1, 255
    _, _, mask = manifest.open_record(make(IMAGE, left, right))
    np.testing.assert_array_equal(mask, (left > 0) | (right > 0))


def test_one_empty_side_is_no_empty_mask(make: Make) -> None:
    checked, _, mask = manifest.open_record(make(IMAGE, MASK * 0, MASK))
    assert checked.status == "ok"
    np.testing.assert_array_equal(mask, MASK // 255)


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        (b"", "rejected", "undecodable"),
        (b"no picture", "rejected", "undecodable"),
        (png(IMAGE)[:-200], "rejected", "undecodable"),
        (cv2.imencode(".tiff", IMAGE.astype(np.float32))[1].tobytes(), "rejected", "depth"),
        (IMAGE[:31], "rejected", "too_small"),
        (IMAGE[:, :31], "rejected", "too_small"),
        (np.full((40, 50), 77, np.uint8), "rejected", "blank"),
        (None, "failed", "unreadable"),
    ],
)
def test_an_image_that_cannot_be_used(image: NDArray[Any] | bytes | None, status: str, code: str, make: Make) -> None:
    checked, opened, mask = manifest.open_record(make(image, MASK))
    assert (checked.status, checked.reason.split(":")[0]) == (status, code)
    assert "case.png" in checked.reason
    assert opened is None
    assert mask is None
    assert (checked.height, checked.width, checked.sha256) == (0, 0, "")


def test_the_smallest_picture_is_taken(make: Make) -> None:
    assert manifest.open_record(make(IMAGE[:32, :32]))[0].status == "ok"


@pytest.mark.parametrize(
    ("mask", "status", "code"),
    [
        (b"", "rejected", "undecodable"),
        (b"no picture", "rejected", "undecodable"),
        (MASK[:-1], "rejected", "mask_size"),
        (MASK.T.copy(), "rejected", "mask_size"),
        (MASK * 0, "rejected", "mask_empty"),
        (MASK * 0 + 255, "rejected", "mask_full"),
        (None, "failed", "unreadable"),
    ],
)
def test_a_mask_that_cannot_be_used_leaves_the_image(
    mask: NDArray[Any] | bytes | None, status: str, code: str, make: Make
) -> None:
    checked, image, opened = manifest.open_record(make(IMAGE, mask))
    assert (checked.status, checked.reason.split(":")[0]) == (status, code)
    assert opened is None
    np.testing.assert_array_equal(image, IMAGE)
    assert (checked.height, checked.width) == (40, 50)
    assert checked.sha256


def test_the_second_mask_is_checked_as_the_first(make: Make) -> None:
    checked, _, _ = manifest.open_record(make(IMAGE, MASK, MASK[:-1]))
    assert checked.reason.startswith("mask_size: mask mask1.png is 39x50, its image is 40x50 (case)")


def test_masks_that_are_full_only_together_are_full(make: Make) -> None:
    top, bottom = np.zeros_like(MASK), np.zeros_like(MASK)
    top[:20], bottom[20:] = 255, 255
    assert manifest.open_record(make(IMAGE, top, bottom))[0].reason.startswith("mask_full")


def test_what_was_rejected_before_is_not_opened(make: Make) -> None:
    record = replace(make(None), status="rejected", reason="one_sided_mask: x")
    assert manifest.open_record(record) == (record, None, None)


def test_a_bug_is_not_taken_for_a_bad_file(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "pixel_digest", None)
    with pytest.raises(TypeError):
        manifest.open_record(make(IMAGE, MASK))


def test_only_the_first_of_an_id_stays() -> None:
    records = [
        Record("a", "n", "/1.png"),
        Record("b", "n", "/2.png"),
        Record("a", "n", "/3.png"),
        Record("a", "s", "/4.png"),
    ]
    checked = manifest.refuse_same_ids(records)
    assert [record.status for record in checked] == ["ok", "ok", "rejected", "ok"]
    assert checked[2].reason.startswith("duplicate_id: 1.png has the id a already")
    assert [replace(record, status="ok", reason="") for record in checked] == records


def test_counts_name_each_reason_and_add_up(make: Make) -> None:
    files: list[NDArray[Any] | bytes | None] = [IMAGE, IMAGE, b"", b"x", None, np.full((40, 50), 3, np.uint8)]
    checked = [manifest.open_record(make(image, MASK))[0] for image in files]
    checked.append(manifest.open_record(make(IMAGE, MASK * 0))[0])
    counts = manifest.summarise(checked)
    assert counts == {
        "failed unreadable": 1,
        "ok": 2,
        "rejected blank": 1,
        "rejected mask_empty": 1,
        "rejected undecodable": 2,
    }
    assert list(counts) == sorted(counts)
    assert sum(counts.values()) == len(checked)
    by_status = Counter(record.status for record in checked)
    assert {
        status: sum(n for key, n in counts.items() if key.split()[0] == status) for status in by_status
    } == by_status
    assert manifest.summarise([]) == {}
