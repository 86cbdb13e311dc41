"""Masks are read, joined, resized and repaired; wrong ones are refused with a code that says what is wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from lungseg.config import OddMasks, PreprocessSettings
from lungseg.errors import ImageError
from lungseg.imaging import codecs, phantom
from lungseg.ingest import mask_checks
from lungseg.ingest.reason_codes import Note
from lungseg.schema import NOT_ANNOTATED, Record

U8 = NDArray[np.uint8]
SIDE = 256
IMAGE, LUNGS = phantom.draw(4, "shenzhen", SIDE)
COMPONENTS = cv2.connectedComponents(LUNGS)[1]
RIGHT, LEFT = sorted(
    (np.asarray(number == COMPONENTS, np.uint8) for number in (1, 2)),
    key=lambda lung: int(np.argwhere(lung)[:, 1].min()),
)
DUST = np.zeros((SIDE, SIDE), np.uint8)
DUST[4:-4:4, 4:-4:4] = 1


def check(mask: U8, image: U8 = IMAGE, odd_masks: OddMasks = "flag") -> mask_checks.CheckedMask:
    return mask_checks.check_mask([("lung", mask)], image, "x", ("lung",), odd_masks)


def refusal(mask: U8, image: U8 = IMAGE, odd_masks: OddMasks = "flag") -> ImageError:
    with pytest.raises(ImageError) as caught:
        check(mask, image, odd_masks)
    assert "the mask of x" in caught.value.message
    return caught.value


def codes(notes: tuple[Note, ...]) -> list[str]:
    return [note.code for note in notes]


def with_boxes(value: int, *boxes: tuple[slice, slice]) -> U8:
    mask = LUNGS.copy()
    for box in boxes:
        mask[box] = value
    return mask


def box_mask(top: float, left: float, bottom: float, right: float) -> U8:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[round(top * SIDE) : round(bottom * SIDE), round(left * SIDE) : round(right * SIDE)] = 1
    return mask


def test_good_mask_is_unchanged() -> None:
    checked = check(LUNGS)
    np.testing.assert_array_equal(checked.masks[0], LUNGS)
    assert checked.masks[0].dtype == np.uint8
    assert checked.area == pytest.approx(LUNGS.mean())
    assert (checked.repairs, checked.flags) == ((), ())


def test_lungs_are_joined_and_classes_may_overlap() -> None:
    heart = box_mask(0.5, 0.2, 0.7, 0.6)
    masks = [("heart", heart), ("lung", LEFT), ("lung", RIGHT)]
    checked = mask_checks.check_mask(masks, IMAGE, "x", ("lung", "heart"), "flag")
    np.testing.assert_array_equal(checked.masks, [LUNGS, heart])
    assert (LUNGS & heart).any()
    first = mask_checks.check_mask(masks, IMAGE, "x", ("heart", "lung"), "flag")
    np.testing.assert_array_equal(first.masks, [heart, LUNGS])
    assert checked.area == first.area == pytest.approx(LUNGS.mean())


def test_specks_are_removed_and_counted() -> None:
    with_specks = with_boxes(1, (slice(1, 3), slice(1, 4)), (slice(250, 251), slice(120, 121)))
    checked = check(with_specks)
    np.testing.assert_array_equal(checked.masks[0], LUNGS)
    assert codes(checked.repairs) == ["mask_specks"]
    assert "7 px in 2 specks" in checked.repairs[0].message


def test_small_holes_are_filled_and_counted() -> None:
    row, column = np.argwhere(cv2.erode(LEFT, np.ones((15, 15), np.uint8)))[0]
    checked = check(with_boxes(0, (slice(row, row + 2), slice(column, column + 3))))
    np.testing.assert_array_equal(checked.masks[0], LUNGS)
    assert codes(checked.repairs) == ["mask_holes"]
    assert "6 px in 1 holes" in checked.repairs[0].message


def test_large_hole_smaller_than_its_lung_stays() -> None:
    inner = cv2.erode(LEFT, np.ones((31, 31), np.uint8))
    assert inner.any()
    checked = check(LUNGS - inner)
    assert checked.repairs == ()
    np.testing.assert_array_equal(checked.masks[0], LUNGS - inner)


@pytest.mark.parametrize(("scale", "min_dice"), [(0.25, 0.97), (0.5, 0.98), (2.0, 0.99)])
@pytest.mark.parametrize("shape", [(256, 256), (300, 257)])
def test_mask_of_equal_aspect_ratio_is_resized(scale: float, min_dice: float, shape: tuple[int, int]) -> None:
    full_size = cv2.resize(LUNGS * np.uint8(255), shape[::-1]) > 127
    size = tuple(round(length * scale) for length in shape)
    mask = np.asarray(
        cv2.resize(full_size.astype(np.uint8) * 255, size[::-1], interpolation=cv2.INTER_AREA) > 127, np.uint8
    )
    fitted, repairs = mask_checks.resize_to_image(mask, shape, "mask m.png", "x")
    assert fitted.shape == shape
    assert set(np.unique(fitted)) == {0, 1}
    assert 2 * (fitted * full_size).sum() / (fitted.sum() + full_size.sum()) > min_dice
    assert codes(repairs) == ["mask_resized"]
    assert f"{size[0]}x{size[1]}" in repairs[0].message


@given(st.integers(64, 5000), st.integers(64, 5000), st.floats(0.1, 1.0))
def test_rounded_mask_size_keeps_its_aspect_ratio(height: int, width: int, scale: float) -> None:
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    assert mask_checks.resize_to_image(np.ones(size, np.uint8), (height, width), "m", "x")[0].shape == (height, width)


@pytest.mark.parametrize(
    ("shape", "advice"),
    [((200, 256), "export"), ((250, 256), "export"), ((256, 240), "rotate it"), ((255, 240), "export")],
)
def test_mask_of_other_aspect_ratio_is_refused(shape: tuple[int, int], advice: str) -> None:
    with pytest.raises(ImageError) as caught:
        mask_checks.resize_to_image(np.ones(shape, np.uint8), (240, 256), "mask m.png", "x")
    assert caught.value.code == "mask_size"
    assert f"mask m.png is {shape[0]}x{shape[1]}, its image is 240x256 (x): {advice}" in caught.value.message


@pytest.mark.parametrize(
    ("mask", "code", "phrase"),
    [
        (LUNGS * 0, "mask_empty", "no pixel"),
        (LUNGS * 0 + 1, "mask_full", "every pixel"),
        (1 - LUNGS, "mask_border", "light"),
        (box_mask(0, 0, 1, 0.3), "mask_border", "3 sides"),
        (box_mask(0, 0.05, 0.3, 0.95), "mask_border", "90%"),
        (box_mask(0.4, 0.45, 0.48, 0.55), "mask_area", "0.8%"),
        (box_mask(0.05, 0.05, 0.95, 0.95), "mask_area", "80."),
        (DUST, "mask_area", "0.0%"),
        (LEFT, "mask_components", "right half"),
        (RIGHT, "mask_components", "left half"),
        (LUNGS * (np.arange(SIDE) % 64 > 12).astype(np.uint8)[:, None], "mask_components", "connected components"),
        (LEFT * (np.arange(SIDE) // 4 != 32).astype(np.uint8)[:, None], "mask_components", "one lung only"),
    ],
)
def test_implausible_mask_is_refused(mask: U8, code: str, phrase: str) -> None:
    error = refusal(mask)
    assert error.code == code
    assert phrase in error.message


CHANGES: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "mirrored left-right": np.fliplr,
    "upside down": np.flipud,
    "rotated by 180 degrees": lambda mask: mask[::-1, ::-1],
    "rotated by 90 degrees to the left": np.rot90,
    "rotated by 90 degrees to the right": lambda mask: np.rot90(mask, 3),
    "transposed": np.transpose,
    "transposed and rotated by 180 degrees": lambda mask: mask.T[::-1, ::-1],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("style", phantom.STYLES)
def test_wrong_mask_orientation_is_refused_and_named(style: phantom.Style, change: str) -> None:
    image, lungs = phantom.draw(8, style, SIDE)
    error = refusal(np.ascontiguousarray(CHANGES[change](lungs)), image)
    assert error.code == "mask_orientation"
    assert f"the mask of x is {change}:" in error.message


def test_dark_bones_are_no_wrong_mask_orientation() -> None:
    for seed in range(10):
        image, lungs = phantom.draw((5, seed), "montgomery", SIDE)
        np.testing.assert_array_equal(check(lungs, 255 - image).masks[0], lungs)


FLAGGED = {
    "mask_touches_border": LUNGS | (box_mask(0, 0, 1, 0.1) * LUNGS.max(1)[:, None] * (np.arange(SIDE) < 200)[:, None]),
    "mask_one_component": LUNGS | box_mask(0.4, 0.3, 0.5, 0.7),
    "mask_three_components": LUNGS - LEFT * box_mask(0.4, 0, 0.45, 1),
    "mask_uneven": RIGHT | LEFT * box_mask(0, 0, 0.22, 1),
}


@pytest.mark.parametrize("code", FLAGGED)
def test_unusual_mask_is_flagged_or_rejected_as_set(code: str) -> None:
    mask = np.asarray(FLAGGED[code], np.uint8)
    assert code in codes(check(mask).flags)
    assert refusal(mask, odd_masks="reject").code == check(mask).flags[0].code


def write(folder: Path, name: str, mask: U8) -> str:
    path = folder / name
    assert cv2.imwrite(str(path), mask)
    return str(path)


def test_masks_are_read_by_class(tmp_path: Path) -> None:
    left = write(tmp_path, "left.png", LEFT * np.uint8(255))
    right = write(tmp_path, "right.png", cv2.resize(RIGHT * np.uint8(7), (128, 128), interpolation=cv2.INTER_NEAREST))
    heart = write(tmp_path, "heart.png", box_mask(0.5, 0.4, 0.7, 0.6) * np.uint8(255))
    record = Record("x", "d", "x.png", (left, right, heart), ("lung", "lung", "heart"))
    checked = mask_checks.read_mask(record, IMAGE, PreprocessSettings(), "flag")
    assert checked is not None
    assert set(np.unique(checked.masks[0])) == {0, 1}
    assert codes(checked.repairs) == ["mask_resized"]
    assert "right.png" in checked.repairs[0].message
    both = mask_checks.read_mask(record, IMAGE, PreprocessSettings(classes=("lung", "heart")), "flag")
    assert both is not None
    assert both.masks.shape == (2, SIDE, SIDE)
    np.testing.assert_array_equal(both.masks[1], box_mask(0.5, 0.4, 0.7, 0.6))
    unnamed = mask_checks.read_mask(
        replace(record, mask_uris=(left, right), mask_classes=()), IMAGE, PreprocessSettings(), "flag"
    )
    assert unnamed is not None
    np.testing.assert_array_equal(unnamed.masks[0], checked.masks[0])


def test_record_without_requested_masks_gives_none(tmp_path: Path) -> None:
    heart = write(tmp_path, "heart.png", LUNGS)
    for record in (Record("x", "d", "x.png"), Record("x", "d", "x.png", (heart,), ("heart",))):
        assert mask_checks.read_mask(record, IMAGE, PreprocessSettings(), "flag") is None


def test_class_without_mask_is_not_annotated(tmp_path: Path) -> None:
    record = Record("x", "d", "x.png", (write(tmp_path, "heart.png", LUNGS * np.uint8(255)),), ("heart",))
    checked = mask_checks.read_mask(record, IMAGE, PreprocessSettings(classes=("lung", "heart")), "flag")
    assert checked is not None
    assert (checked.masks[0] == NOT_ANNOTATED).all()
    np.testing.assert_array_equal(checked.masks[1], LUNGS)
    assert checked.area is None


def test_empty_mask_of_another_class_is_annotated() -> None:
    masks = [("lung", LUNGS), ("opacity", np.zeros_like(LUNGS))]
    checked = mask_checks.check_mask(masks, IMAGE, "x", ("lung", "opacity"), "flag")
    assert not checked.masks[1].any()


def test_each_lung_comes_from_the_components_of_a_mask() -> None:
    checked = mask_checks.check_mask([("lung", LUNGS)], IMAGE, "x", ("right_lung", "left_lung"), "flag")
    right, left = checked.masks
    np.testing.assert_array_equal(right | left, LUNGS)
    assert not (right & left).any()
    columns = [np.nonzero(lung.any(axis=0))[0] for lung in (right, left)]
    assert columns[0].max() < columns[1].min()  # the patient's right is on the left of the image


def test_masks_of_each_lung_give_the_lungs() -> None:
    right, left = (LEFT, RIGHT) if np.nonzero(LEFT)[1].mean() < np.nonzero(RIGHT)[1].mean() else (RIGHT, LEFT)
    masks = [("right_lung", right), ("left_lung", left)]
    checked = mask_checks.check_mask(masks, IMAGE, "x", ("left_lung", "right_lung", "lung"), "flag")
    np.testing.assert_array_equal(checked.masks, [left, right, LUNGS])
    with pytest.raises(ImageError, match=r"^the right_lung mask of x is on the right of its image"):
        mask_checks.check_mask([("right_lung", left), ("left_lung", right)], IMAGE, "x", ("right_lung",), "flag")
    with pytest.raises(ImageError, match=r"^x has a left_lung mask only"):
        mask_checks.check_mask([("left_lung", left)], IMAGE, "x", ("left_lung",), "flag")


def test_full_mask_of_another_class_is_refused() -> None:
    masks = [("lung", LUNGS), ("heart", np.ones_like(LUNGS))]
    with pytest.raises(ImageError, match=r"^the heart mask of x marks every pixel"):
        mask_checks.check_mask(masks, IMAGE, "x", ("lung", "heart"), "flag")


def test_mask_file_of_wrong_size_is_refused(tmp_path: Path) -> None:
    uri = write(tmp_path, "m.png", LUNGS[:200] * np.uint8(255))
    with pytest.raises(ImageError, match=r"^mask m.png is 200x256, its image is 256x256 \(x\)"):
        mask_checks.read_mask(Record("x", "d", "x.png", (uri,)), IMAGE, PreprocessSettings(), "flag")


def test_jpeg_mask_is_thresholded_without_a_repair(tmp_path: Path) -> None:
    uri = write(tmp_path, "m.jpg", LUNGS * np.uint8(255))
    checked = mask_checks.read_mask(Record("x", "d", "x.png", (uri,)), IMAGE, PreprocessSettings(), "flag")
    assert checked is not None
    assert checked.repairs == ()
    assert (checked.masks[0] != LUNGS).mean() < 0.002


@pytest.mark.parametrize(("left", "right"), [(1, 2), (2, 1), (127, 254), (1, 255), (60, 200)])
@pytest.mark.parametrize("scale", [1, 2])
def test_lungs_with_different_grey_values_are_both_read(tmp_path: Path, left: int, right: int, scale: int) -> None:
    labels = LEFT * np.uint8(left) + RIGHT * np.uint8(right)
    labels = np.kron(labels, np.ones((scale, scale), np.uint8))
    uri = write(tmp_path, "m.png", labels)
    for classes in (("lung",), ("lung", "heart")):
        record = Record("x", "d", "x.png", (uri,))
        checked = mask_checks.read_mask(record, IMAGE, PreprocessSettings(classes=classes), "flag")
        assert checked is not None
        assert (checked.masks[0] == LUNGS).mean() > 0.999


def test_one_lung_with_two_grey_values_is_refused(tmp_path: Path) -> None:
    uri = write(tmp_path, "m.png", LEFT * np.where(np.arange(SIDE) % 40 < 20, 100, 255).astype(np.uint8)[:, None])
    with pytest.raises(ImageError, match="marks whole areas by the grey values 100, 255"):
        mask_checks.read_mask(Record("x", "d", "x.png", (uri,)), IMAGE, PreprocessSettings(), "flag")


def test_label_image_of_lungs_and_heart_is_refused(tmp_path: Path) -> None:
    """A threshold at half of the largest value would take the heart for the lungs."""
    heart = box_mask(0.5, 0.4, 0.7, 0.6)
    uri = write(tmp_path, "m.png", np.where(heart == 1, 2, LUNGS).astype(np.uint8))
    with pytest.raises(ImageError, match=r"^mask m.png marks whole areas by the grey values 1, 2"):
        mask_checks.read_mask(Record("x", "d", "x.png", (uri,)), IMAGE, PreprocessSettings(), "flag")


def test_multi_page_mask_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    assert cv2.imwritemulti(str(path), [LEFT * np.uint8(255), RIGHT * np.uint8(255)])
    with pytest.raises(ImageError, match=r"^mask m.tif holds several pages or frames, expected one"):
        mask_checks.read_mask(Record("x", "d", "x.png", (str(path),)), IMAGE, PreprocessSettings(), "flag")


def test_real_masks_pass_and_rotated_ones_are_refused(cxr256: Path) -> None:
    files = sorted(cxr256.glob("*/images/*.png"))[::6]
    accepted = dict.fromkeys(CHANGES, 0)
    for path in files:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        mask_path = next((path.parents[1] / "masks").glob(f"{path.stem}*"))
        mask = cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        assert mask is not None
        mask = np.asarray(mask > 127, np.uint8)
        np.testing.assert_array_equal(codecs.decode_mask(mask_path.read_bytes(), mask_path.name), mask)
        check(mask, image)
        for change, function in CHANGES.items():
            try:
                check(np.ascontiguousarray(function(mask)), image)
            except ImageError:
                continue
            accepted[change] += 1
    assert len(files) > 100
    assert max(accepted.values()) <= 2, accepted


def outlined(mask: U8, width: int) -> U8:
    return cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((width, width), np.uint8)).astype(np.uint8)


@pytest.mark.parametrize("width", [2, 3, 5, 7])
def test_outlines_of_lungs_are_filled(width: int) -> None:
    checked = check(outlined(LUNGS, width))
    assert codes(checked.repairs) == ["mask_outline_filled"]
    assert float(np.mean(checked.masks[0] != LUNGS)) < 0.01 * width
    assert cv2.countNonZero(LUNGS - (LUNGS & checked.masks[0])) == 0


def test_one_outlined_lung_beside_a_filled_one_is_filled() -> None:
    checked = check(RIGHT | outlined(LEFT, 3))
    assert codes(checked.repairs) == ["mask_outline_filled"]
    assert cv2.countNonZero(LUNGS - (LUNGS & checked.masks[0])) == 0


HEART = cv2.ellipse(np.zeros((SIDE, SIDE), np.uint8), (135, 150), (28, 34), 0, 0, 360, (1,), -1) & (1 - LUNGS)


@pytest.mark.parametrize(
    ("lung", "heart"), [(255, 200), (255, 140), (255, 240), (200, 255), (38, 75), (76, 150), (1, 2)]
)
def test_lungs_with_a_heart_of_another_level_are_refused(lung: int, heart: int) -> None:
    content = codecs.encode_labels((LUNGS * np.uint8(lung)) | (HEART * np.uint8(heart)))
    with pytest.raises(ImageError, match=r"^m\.png marks whole areas by the grey values"):
        codecs.decode_mask(content, "m.png")


@pytest.mark.parametrize("levels", [(255, 200), (38, 75), (255, 255)])
def test_a_level_for_each_lung_is_read(levels: tuple[int, int]) -> None:
    content = codecs.encode_labels(RIGHT * np.uint8(levels[0]) + LEFT * np.uint8(levels[1]))
    np.testing.assert_array_equal(codecs.decode_mask(content, "m.png"), LUNGS)


@pytest.mark.parametrize("quality", [20, 60, 95])
def test_jpeg_noise_is_no_second_level(quality: int) -> None:
    done, content = cv2.imencode(".jpg", LUNGS * np.uint8(255), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    assert float(np.mean(codecs.decode_mask(content.tobytes(), "m.jpg") != LUNGS)) < 0.01
