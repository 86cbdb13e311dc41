"""Mapping of stored values to grey levels, compared with pydicom where it is correct."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

from lungseg.imaging.dicom.rendering import Rendering, Table, Window, is_usable_window, render, stored_values

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
PLAIN = Rendering(bits=12)


def pydicom_dataset(rendering: Rendering) -> Dataset:
    dataset = Dataset()
    dataset.BitsStored = rendering.bits
    dataset.PixelRepresentation = int(rendering.signed)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = rendering.slope, rendering.intercept
    return dataset


def table(entries: Any, first: int, bits: int) -> tuple[Table, Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [len(entries), first, bits])
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return Table(first, np.asarray(entries, np.float64)), item


def scaled(values: NDArray[Any]) -> NDArray[np.uint16]:
    spread = float(np.ptp(values)) or 1.0
    return np.rint((values - values.min()) * (65535.0 / spread)).astype(np.uint16)


def near(result: NDArray[np.uint16], expected: NDArray[np.uint16]) -> bool:
    return int(np.abs(result.astype(int) - expected).max()) <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_stored_values_keep_their_order_over_the_full_range(bits: int, signed: bool) -> None:
    rendering = Rendering(bits=bits, signed=signed)
    stored = stored_values(rendering)
    assert (stored.min(), stored.max()) == ((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1))
    kind = ("i" if signed else "u") + ("1" if bits == 8 else "2")
    result = render(stored.astype(kind)[None], rendering)[0]
    order = np.argsort(stored)
    assert (result[order[0]], result[order[-1]]) == (0, 65535)
    assert (np.diff(result[order].astype(int)) > 0).all()


def test_bits_outside_the_stored_ones_are_ignored() -> None:
    overlay = RAMP | np.uint16(0xA000)
    np.testing.assert_array_equal(render(overlay, PLAIN), render(RAMP, PLAIN))
    np.testing.assert_array_equal(render(RAMP << 4 | 3, replace(PLAIN, shift=4)), render(RAMP, PLAIN))


def test_signs_without_extension_are_read() -> None:
    signed = RAMP.astype(np.int16) - 2048
    cut = (signed.view(np.uint16) & 0x0FFF).view(np.int16)
    rendering = replace(PLAIN, signed=True)
    np.testing.assert_array_equal(render(cut, rendering), render(signed, rendering))
    np.testing.assert_array_equal(render(signed, rendering), render(RAMP, PLAIN))


@given(
    st.floats(-1000, 5000),
    st.floats(300, 9000),
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    st.booleans(),
    st.sampled_from([(1.0, 0.0), (2.5, -1024.0), (0.1, 3.0)]),
)
def test_windows_match_pydicom(
    centre: float, width: float, function: str, signed: bool, rescale: tuple[float, float]
) -> None:
    window = Window(centre, width, function)
    rendering = Rendering(12, signed=signed, slope=rescale[0], intercept=rescale[1], voi=window)
    dataset = pydicom_dataset(rendering)
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = centre, width, function
    stored = stored_values(rendering)
    expected = apply_windowing(apply_modality_lut(stored, dataset), dataset)
    # pydicom loses precision when it adds the lowest output; far down a sigmoid only rounding is left.
    exact = np.ptp(expected) > 1e-6 * np.abs(expected).max()
    if exact and is_usable_window(expected, np.ones(stored.size, np.int64)):
        assert near(render(stored.astype(np.int16)[None], rendering)[0], scaled(expected))


@given(st.lists(st.integers(0, 65535), min_size=2, max_size=300), st.integers(-500, 4095))
def test_voi_luts_match_pydicom(entries: list[int], first: int) -> None:
    looked_up, item = table(entries, first, 16)
    dataset = pydicom_dataset(PLAIN)
    dataset.VOILUTSequence = [item]
    stored = stored_values(PLAIN).astype(np.int64)
    expected = apply_voi(stored, dataset)
    rendering = replace(PLAIN, voi=looked_up)
    if is_usable_window(expected.astype(np.float64), np.ones(4096, np.int64)):
        assert near(render(RAMP, rendering), scaled(expected).reshape(RAMP.shape))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_modality_luts_of_any_depth_precede_the_window(bits: int) -> None:
    entries = (np.linspace(1, 0, 4096) ** 2 * (2**bits - 1)).astype(int)
    looked_up, item = table(entries, 0, bits)
    window = Window(2 ** (bits - 1), 2**bits * 0.75)
    result = render(RAMP, replace(PLAIN, modality=looked_up, voi=window))
    low, high = window.centre - 0.5 - (window.width - 1) / 2, window.centre - 0.5 + (window.width - 1) / 2
    assert near(result, scaled(np.clip(entries, low, high)).reshape(RAMP.shape))
    if bits in (8, 16):  # pydicom knows these two
        dataset = pydicom_dataset(PLAIN)
        dataset.ModalityLUTSequence = [item]
        np.testing.assert_array_equal(apply_modality_lut(RAMP, dataset), entries.reshape(RAMP.shape))


def test_a_long_8_bit_voi_lut_does_not_overflow() -> None:
    looked_up, _ = table(np.arange(4096) // 16, 0, 8)
    result = render(RAMP, replace(PLAIN, voi=looked_up)).ravel()
    np.testing.assert_array_equal(result, np.arange(4096) // 16 * 257)


def test_negative_lut_starts_may_be_written_unsigned() -> None:
    looked_up, _ = table(np.arange(4096), -2048, 12)
    signed = RAMP.astype(np.int16) - 2048
    rendering = replace(PLAIN, signed=True, voi=looked_up)
    unsigned = replace(rendering, voi=replace(looked_up, first=65536 - 2048))
    np.testing.assert_array_equal(render(signed, rendering), render(signed, unsigned))
    assert np.unique(render(signed, unsigned)).size == 4096


WINDOWS = {
    "beside the values": Window(-5000, 400),
    "above them": Window(30000, 400),
    "a hair's breadth": Window(2000, 2),
    "of no width": Window(2000, 1),
    "of negative width": Window(2000, -40),
    "nearly all white": Window(40, 60),
    "a table of one value": Table(0, np.full(4096, 7.0)),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("inverted", [False, True])
def test_windows_that_show_nothing_are_skipped(name: str, inverted: bool) -> None:
    values = np.clip(RAMP // 2 + 700, 700, 2400)
    plain = replace(PLAIN, inverted=inverted)
    result = render(values, replace(plain, voi=WINDOWS[name]))
    np.testing.assert_array_equal(result, render(values, plain))
    assert (result.min(), result.max()) == (0, 65535)


@pytest.mark.parametrize("darkest", [0, 30000])
def test_a_far_too_wide_window_is_skipped(darkest: int) -> None:
    values = RAMP // 64 + np.uint16(darkest)  # 64 levels of a depth of 65536
    deep = Rendering(bits=16, voi=Window(32768, 65536))
    assert np.ptp(render(values, deep)) == 65535


def test_a_narrow_usable_window_is_applied() -> None:
    result = render(RAMP, replace(PLAIN, voi=Window(2048, 1024)))
    assert np.mean(result == 0) == pytest.approx(0.375, abs=0.01)
    assert np.mean(result == 65535) == pytest.approx(0.375, abs=0.01)


def test_monochrome1_is_inverted_after_the_window() -> None:
    rendering = replace(PLAIN, voi=Window(1000, 1500))
    turned = render(RAMP, replace(rendering, inverted=True))
    np.testing.assert_array_equal(turned, np.uint16(65535) - render(RAMP, rendering))


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("padding", [(4000.0,), (4000.0, 4095.0), (4095.0, 4000.0)])
def test_padding_is_black_and_excluded_from_the_range(padding: tuple[float, ...], inverted: bool) -> None:
    values = np.clip(RAMP, 500, 3000)
    padded = values.copy()
    padded[:8] = int(padding[0])
    rendering = replace(PLAIN, inverted=inverted)
    result = render(padded, replace(rendering, padding=padding))
    assert not result[:8].any()
    np.testing.assert_array_equal(result[8:], render(values[8:], rendering))


def test_negative_padding_may_be_written_unsigned() -> None:
    values = RAMP.astype(np.int16) // 2 - 1000
    values[:8] = -2000
    result = render(values, replace(PLAIN, signed=True, padding=(65536.0 - 2000,)))
    assert not result[:8].any()
    assert result[8:].min() == 0
    assert np.unique(result[8:]).size == 28 * 64


def test_uniform_and_padding_only_images_stay_uniform() -> None:
    flat = np.full((8, 8), 77, np.uint16)
    assert np.unique(render(flat, PLAIN)).size == 1
    assert not render(flat, replace(PLAIN, padding=(77.0,))).any()
    assert not render(flat, replace(PLAIN, padding=(77.0,), inverted=True)).any()
