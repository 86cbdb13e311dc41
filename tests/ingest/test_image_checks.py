"""Images are accepted, repaired, flagged or refused, and dark bones are recognised."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lungseg.errors import ImageError
from lungseg.imaging import phantom
from lungseg.imaging.thumbnails import rank_content
from lungseg.ingest import image_checks, view_classifier
from lungseg.ingest.reason_codes import Note

U8 = NDArray[np.uint8]
CHEST = {style: phantom.draw(3, style, 256)[0] for style in phantom.STYLES}


def png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def codes(notes: tuple[Note, ...]) -> list[str]:
    return [note.code for note in notes]


def refusal(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> ImageError:
    with pytest.raises(ImageError) as caught:
        image_checks.read_image(png(pixels), "x.png")
    assert "x.png" in caught.value.message
    return caught.value


@pytest.mark.parametrize(("shape", "is_small"), [((64 - 1, 100), True), ((100, 64 - 1), True), ((64, 64), False)])
def test_a_picture_too_small_to_trust_is_flagged(shape: tuple[int, int], is_small: bool) -> None:
    picture = cv2.resize(CHEST["shenzhen"], shape, interpolation=cv2.INTER_AREA)
    assert ("small_picture" in codes(image_checks.check_pixels(picture, "x")[2])) == is_small


@pytest.mark.parametrize("style", phantom.STYLES)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_chest_of_any_bit_depth_is_unchanged(style: phantom.Style, bits: int) -> None:
    image = CHEST[style] if bits == 8 else CHEST[style].astype(np.uint16) << (bits - 8)
    checked = image_checks.read_image(png(image), "x.png")
    assert (checked.repairs, checked.flags) == ((), ())
    np.testing.assert_array_equal(checked.image, image)
    assert checked.tags.patient_id == ""


@pytest.mark.parametrize("style", phantom.STYLES)
@pytest.mark.parametrize("full", [255, 4095])
def test_dark_bones_are_inverted_in_the_depth_in_use(style: phantom.Style, full: int) -> None:
    image = CHEST[style] if full == 255 else CHEST[style].astype(np.uint16) * 16
    image = np.maximum(image, 1)
    inverted = np.subtract(image.dtype.type(full), image)
    checked = image_checks.read_image(png(inverted), "x.png")
    assert codes(checked.repairs) == ["inverted"]
    np.testing.assert_array_equal(checked.image, image)


def test_padding_of_an_inverted_image_stays_black() -> None:
    image = np.maximum(CHEST["shenzhen"], 1)
    checked = image_checks.read_image(png(np.pad(255 - image, ((0, 0), (64, 64)))), "x.png")
    assert codes(checked.repairs) == ["inverted"]
    assert not checked.image[:, :64].any()
    assert (checked.image[:, 64:-64] == image).mean() > 0.99


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("style", phantom.STYLES)
def test_rotated_chest_is_flagged_and_not_inverted(style: phantom.Style, turns: int) -> None:
    _, repairs, flags = image_checks.check_pixels(np.rot90(CHEST[style], turns), "x.png")
    assert repairs == ()
    assert codes(flags) == ["rotated"]


@pytest.mark.parametrize(
    ("height", "width", "code"),
    [(31, 64, "too_small"), (256, 31, "too_small"), (100, 251, "extreme_aspect"), (251, 100, "extreme_aspect")],
)
def test_wrong_image_shape_is_refused(height: int, width: int, code: str) -> None:
    error = refusal(cv2.resize(CHEST["shenzhen"], (width, height)))
    assert error.code == code
    assert f"{height}x{width}" in error.message


def test_image_shape_at_the_limit_is_accepted() -> None:
    for width, height in ((250, 100), (32, 32)):
        resized = cv2.resize(CHEST["shenzhen"], (width, height))
        np.testing.assert_array_equal(image_checks.read_image(png(resized), "x.png").image, resized)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "blank"),
    [
        (0, 0, np.uint8, True),
        (255, 255, np.uint8, True),
        (100, 103, np.uint8, True),
        (100, 105, np.uint8, False),
        (2000, 2010, np.uint16, True),
        (0, 1023, np.uint16, False),
        (64512, 65535, np.uint16, False),
    ],
)
def test_image_without_contrast_is_blank(low: int, high: int, dtype: type[np.uint8], blank: bool) -> None:
    image = np.random.default_rng(0).integers(low, high + 1, (128, 128)).astype(dtype)
    if blank:
        assert refusal(image).code == "blank"
    else:
        image_checks.check_pixels(image, "x.png")


def test_blank_film_with_a_marker_is_blank() -> None:
    image = np.full((256, 256), 120, np.uint8)
    image[8:16, 8:16] = 255
    assert refusal(image).code == "blank"


@pytest.mark.parametrize("suffix", [".tiff", ".gif", ".webp", ".png"])
def test_multi_page_images_are_refused(suffix: str) -> None:
    """A second page may be the lateral view, or an earlier image."""
    image = np.dstack([CHEST["shenzhen"]] * 3)
    done, content = cv2.imencodemulti(suffix, [image, 255 - image])
    assert done
    with pytest.raises(ImageError, match=r"^x\.y holds several pages or frames"):
        image_checks.read_image(content.tobytes(), "x.y")


@pytest.mark.parametrize("suffix", [".bmp", ".jp2", ".webp"])
def test_other_image_formats_are_accepted(suffix: str) -> None:
    done, content = cv2.imencode(suffix, CHEST["montgomery"])
    assert done
    checked = image_checks.read_image(content.tobytes(), f"x{suffix}")
    assert checked.flags == ()
    assert np.abs(checked.image.astype(int) - CHEST["montgomery"]).mean() < 4


COLOURS = {
    "equal channels": lambda grey: np.dstack([grey] * 3),
    "sepia": lambda grey: np.dstack([grey * 0.55, grey * 0.8, grey * 0.95]).astype(np.uint8),
    "bluish film with a floor": lambda grey: np.dstack([40 + grey * 0.8, 20 + grey * 0.7, grey * 0.7]).astype(np.uint8),
    "red alone": lambda grey: np.dstack([grey * 0, grey * 0, grey]),
}


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("style", phantom.STYLES)
def test_grey_image_stored_as_colour_becomes_grey(name: str, style: phantom.Style) -> None:
    image, repairs, flags = image_checks.check_pixels(COLOURS[name](CHEST[style]), "x.png")
    assert image.shape == CHEST[style].shape
    is_dark = name == "red alone"  # the luma of red reaches 30 % of the range
    assert codes(repairs) == ["grey_as_colour", *(["narrow_range"] if is_dark else [])]
    assert flags == ()


def test_jpeg_chroma_noise_is_no_colour() -> None:
    grey = np.dstack([CHEST["montgomery"]] * 3).astype(np.int16)
    noisy = np.clip(grey + np.random.default_rng(0).integers(-6, 7, grey.shape), 0, 255).astype(np.uint8)
    content = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()
    assert codes(image_checks.read_image(content, "x.jpg").repairs) == ["grey_as_colour"]


@pytest.mark.parametrize("scheme", [cv2.COLORMAP_JET, cv2.COLORMAP_HSV])
def test_coloured_image_is_refused(scheme: int) -> None:
    error = refusal(cv2.applyColorMap(CHEST["shenzhen"], scheme))
    assert error.code == "colour"
    assert "0.98" in error.message


def test_noise_is_flagged_as_not_chest_like() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    _, repairs, flags = image_checks.check_pixels(noise, "x.png")
    assert repairs == ()
    assert "not_chest_like" in codes(flags)


def chest_likeness(image: U8) -> tuple[float, float]:
    return image_checks.chest_likeness(rank_content(image, view_classifier.SIDE))


@pytest.mark.parametrize("style", phantom.STYLES)
def test_phantoms_are_chest_like(style: phantom.Style) -> None:
    likeness = [chest_likeness(phantom.draw((9, seed), style, 128)[0])[0] for seed in range(20)]
    assert min(likeness) > 0.3


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(32, 64), st.integers(32, 64))),
    st.integers(0, 40),
)
def test_accepted_image_keeps_its_shape_and_dtype(image: U8, pad: int) -> None:
    image = np.pad(image, pad)
    try:
        checked, _, _ = image_checks.check_pixels(image, "x.png")
    except ImageError as error:
        assert error.code in ("blank", "two_valued", "extreme_aspect")  # noqa: PT017 - both outcomes are right
    else:
        assert checked.shape == image.shape
        assert checked.dtype == image.dtype


@given(hnp.arrays(np.uint8, (64, 64)))
def test_chest_likeness_of_a_negative_has_the_opposite_sign(image: U8) -> None:
    upright, sideways = chest_likeness(image)
    assert -1 <= upright <= 1
    assert -1 <= sideways <= 1
    assert chest_likeness(255 - image)[0] == pytest.approx(-upright, abs=1e-2)


def test_real_chests_are_unchanged_and_their_negatives_inverted(cxr256: Path) -> None:
    files = sorted(cxr256.glob("*/images/*.png"))[::6]
    assert len(files) > 100
    for path in files:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        upright, _ = chest_likeness(image)
        assert upright > 0.25, path.name
        assert image_checks.check_pixels(image, path.name)[1:] == ((), ()), path.name
        assert codes(image_checks.check_pixels(255 - image, path.name)[1]) == ["inverted"], path.name
