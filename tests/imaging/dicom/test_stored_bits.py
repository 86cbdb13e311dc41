"""Which bits of a cell hold the picture, decided from the cells."""

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg.imaging import phantom
from lungseg.imaging.dicom.stored_bits import StoredBits, find_stored_bits

U16 = NDArray[np.uint16]
CHEST = {style: phantom.draw(5, style, 256)[0] for style in phantom.STYLES}
NOISE = np.random.default_rng(0)


def picture(bits: int, style: phantom.Style = "montgomery", noise: float = 0.0) -> U16:
    """A phantom that uses all of these bits."""
    grey = CHEST[style] / 255.0 + NOISE.normal(0.0, noise, CHEST[style].shape)
    return np.rint(np.clip(grey, 0, 1) * (2**bits - 1)).astype(np.uint16)


def text(value: int) -> U16:
    """An annotation: letters and a filled box."""
    drawn = np.zeros((256, 256), np.uint8)
    cv2.putText(drawn, "PORTABLE", (20, 60), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 1, 3)
    drawn[180:230, 30:120] = 1
    return drawn.astype(np.uint16) * np.uint16(value)


def unsigned(bits: int, shift: int = 0) -> StoredBits:
    return StoredBits(bits, shift, False)


def signed(bits: int) -> StoredBits:
    return StoredBits(bits, 0, True)


def as_signed(values: U16, bits: int, extended: bool = True) -> U16:
    """Subtract half of the range; cells are two's complement of 16 bits, or of these bits only."""
    cells = (values.astype(np.int32) - 2 ** (bits - 1)).astype(np.int16).view(np.uint16)
    return cells if extended else cells & np.uint16(2**bits - 1)


@pytest.mark.parametrize("style", phantom.STYLES)
@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize(("stated", "held"), [(8, 12), (8, 16), (10, 12), (10, 14), (12, 13), (12, 14), (12, 16)])
def test_a_picture_above_the_stated_bits_is_kept(stated: int, held: int, noise: float, style: phantom.Style) -> None:
    assert find_stored_bits(picture(held, style, noise), unsigned(stated)) == unsigned(held)
    assert find_stored_bits(as_signed(picture(held, style, noise), held), signed(stated)) == signed(held)


JUNK: dict[str, Any] = {
    "none": 0,
    "constant": 0xC000,
    "random": NOISE.integers(0, 16, (256, 256)).astype(np.uint16) << 12,
    "text in the highest bit": text(0x8000),
    "text in the next bit": text(0x1000),
    "a negative picture of another bit": np.where(CHEST["shenzhen"] > 128, 0, 0x2000).astype(np.uint16),
}


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("style", phantom.STYLES)
def test_junk_above_the_stated_bits_is_left_out(junk: str, style: phantom.Style) -> None:
    assert find_stored_bits(picture(12, style) | JUNK[junk], unsigned(12)) == unsigned(12)


def test_a_picture_is_kept_without_the_junk_above_it() -> None:
    assert find_stored_bits(picture(12) | text(0x8000), unsigned(10)) == unsigned(12)
    assert find_stored_bits(picture(12) | text(0x1000), unsigned(10)) == unsigned(12)


@pytest.mark.parametrize("value", [0xFFFF, 0x8000, 0xF830, 0x1FFF])
def test_a_marker_beyond_the_stated_bits_changes_nothing(value: int) -> None:
    cells = picture(12)
    cells[20:40, 20:60] = value
    assert find_stored_bits(cells, unsigned(12)) == unsigned(12)


def test_a_mixture_of_picture_and_junk_is_unclear() -> None:
    cells = picture(13)
    cells[:, 128:] &= 0x0FFF
    junk = NOISE.random((256, 256)) < 0.002
    junk[:, :128] = False
    assert find_stored_bits(cells | (junk.astype(np.uint16) << 12), unsigned(12)) is None


@pytest.mark.parametrize("extended", [True, False])
def test_signs_are_read_with_and_without_extension(extended: bool) -> None:
    assert find_stored_bits(as_signed(picture(12), 12, extended), signed(12)) == signed(12)


def test_a_wrong_sign_is_corrected() -> None:
    assert find_stored_bits(as_signed(picture(12), 12), unsigned(12)) == signed(12)
    raw = find_stored_bits(picture(12), signed(12))
    assert raw == signed(13)  # as a number of 13 bits, every value of 12 bits is positive


@pytest.mark.parametrize("extended", [True, False])
def test_an_unknown_sign_is_found(extended: bool) -> None:
    cells = as_signed(picture(12), 12, extended)
    assert find_stored_bits(cells, unsigned(12), sign_known=False) == signed(12)
    assert find_stored_bits(picture(12), unsigned(12), sign_known=False) == unsigned(12)


def test_an_unknown_width_is_found() -> None:
    assert find_stored_bits(picture(12), unsigned(16), width_known=False) == unsigned(12)
    assert find_stored_bits(picture(12) | text(0x4000), unsigned(16), width_known=False) == unsigned(12)


def test_the_alignment_of_cells_is_corrected() -> None:
    cells = picture(12)
    assert find_stored_bits(cells << 4, unsigned(12, shift=4)) == unsigned(12, shift=4)
    assert find_stored_bits(cells << 4, unsigned(12)) == unsigned(16)
    assert find_stored_bits(cells, unsigned(12, shift=4)) == unsigned(12)


@pytest.mark.parametrize("bits", [6, 7, 8])
def test_cells_of_8_bits_work_alike(bits: int) -> None:
    cells = CHEST["montgomery"] >> (8 - bits)
    assert find_stored_bits(cells, unsigned(6)) == unsigned(bits)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
def test_flat_and_tiny_images_keep_the_statement(bits: int, shape: tuple[int, int]) -> None:
    for value in (0, 1, 2**bits - 1):
        assert find_stored_bits(np.full(shape, value, np.uint16), unsigned(bits)) == unsigned(bits)
