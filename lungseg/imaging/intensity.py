"""Normalise grey values of any depth to 0..255, using statistics inside the collimation."""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import Grey
from lungseg.errors import ImageError, InputError, SettingsError
from lungseg.imaging.collimation import content_box

_CLAHE_LIMIT, _CLAHE_TILES = 2.0, (8, 8)
_STRETCH = (1.0, 99.0)
_NYUL = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)
_STANDARD = (2.55, 252.45)  # 1 and 99 % of 0..255, so that the tails of the histogram fit
_BODY = (5.0, 95.0)  # percentiles; markers and borders are outside
_BODY_SAMPLES = 128  # a side
_NARROW = 0.25  # share of the depth; the body of chest X-rays fills 0.43 or more (Shenzhen, Montgomery, phantoms)
_GAP = 0.01  # levels; least distance of two landmarks if a reference is saturated


def normalise(image: Grey, histogram: str, landmarks: tuple[float, ...] = ()) -> NDArray[np.uint8]:
    """Map grey values of any depth, u8 or u16[H,W], to 0..255 by the named histogram mode.

    Modes none and clahe stretch an image with a narrow range first. Statistics are computed inside the content box.
    Pure black there counts as padding: it is excluded and stays 0. Every mode except clahe is one monotonic lookup
    table. match maps the percentiles 1, 10, 20 ... 90, 99 to `landmarks`: linearly between them, extrapolated at the
    outer slopes, clipped to 0..255.

    Raises:
        SettingsError: match without landmarks, or with landmarks that do not increase.

    Source: match: Nyul, Udupa, Zhang, New variants of a method of MRI scale standardization, IEEE TMI 19(2), 2000.

    """
    if histogram == "match":
        _check_landmarks(landmarks)
    if histogram in ("none", "clahe"):
        image = stretch_narrow(image)
    if histogram == "none" and image.dtype == np.uint8:
        return image  # type: ignore[return-value]
    box = content_box(image)
    if histogram in ("none", "clahe"):
        shallow = _to_8_bits(image, _bits(image[box]))
        return shallow if histogram == "none" else _equalize_tiles(shallow, image, box)
    cumulative = _cumulative_counts(image[box])
    if cumulative[-1] == 0:
        return np.zeros(image.shape, np.uint8)
    if histogram == "match":
        levels = _match_table(cumulative, landmarks)
    else:
        levels = _equalize_table(cumulative) if histogram == "equalize" else _stretch_table(cumulative)
    levels[0] = 0
    # cv2.LUT supports 16 bits only since OpenCV 5.
    return cv2.LUT(image, levels) if image.dtype == np.uint8 else np.take(levels, image)  # type: ignore[return-value]


def stretch_narrow(image: Grey) -> Grey:
    """Stretch the body of an image, u8 or u16[H,W], to the whole range if it fills less than a quarter of the depth.

    A label, a marker or a border at full scale makes the depth in use larger than that of the body, which would become
    nearly black at 8 bits. Brighter and darker values are clipped. If they are in the border alone, and the picture
    fills the depth that it uses, the border becomes white at this depth. Other images are returned unchanged.
    """
    whole = _body_ends(image)
    # A marker far beyond the body would make all of the body look like a uniform border.
    bounded: Grey = image if whole is None else image.clip(*whole)
    box = content_box(bounded)
    content: Grey = image[box]
    ends = whole if content.shape == image.shape else _body_ends(content)
    if ends is None:
        return image if whole is None else _without_overbright(image, _bits(content))
    full = int(np.iinfo(image.dtype).max)
    levels = np.rint(np.interp(np.arange(full + 1), ends, (1, full))).astype(image.dtype)
    levels[0] = 0  # pure black means padding
    stretched: Grey = np.take(levels, image)
    return stretched


def without_extremes(samples: Grey) -> Grey:
    """Sort grey values, and leave out those beyond a gap of more than half of the range: markers and borders."""
    values = _sorted(samples)
    for _ in range(2):  # one at either end
        gaps = np.diff(values)
        split = int(gaps.argmax()) + 1 if gaps.size else 0
        if not gaps.size or 2 * int(gaps[split - 1]) <= int(values[-1]) - int(values[0]):
            break
        body = max(values[:split], values[split:], key=len)
        if body[0] == body[-1]:
            break
        values = body
    return values


def _sorted(samples: Grey) -> Grey:
    """Sort grey values; counting is ten times faster where there are only 256 of them."""
    if samples.dtype == np.uint8:
        return np.repeat(np.arange(256, dtype=np.uint8), np.bincount(samples.ravel(), minlength=256))
    values: Grey = samples.flatten()
    values.sort()
    return values


def _without_overbright(image: Grey, bits: int) -> Grey:
    """Clip values that need more bits."""
    full = (1 << bits) - 1
    clipped: Grey = np.minimum(image, image.dtype.type(full)) if int(image.max()) > full else image
    return clipped


def _body_ends(content: Grey) -> tuple[int, int] | None:
    """Return the range of the body if it is narrow for the depth of the content.

    The range reaches one width beyond the body's percentiles at most: what is farther away is a marker.
    """
    steps = [max(1, length // _BODY_SAMPLES) for length in content.shape]
    samples = without_extremes(content[:: steps[0], :: steps[1]])
    low, high = (int(grey) for grey in np.percentile(samples, _BODY))
    width = high - low
    if width == 0 or width >= _NARROW * ((1 << _bits(content)) - 1):
        return None
    near = content[(content >= max(low - width, 0)) & (content <= high + width)]
    return int(near.min()), int(near.max())


def compute_landmarks(images: Iterable[Grey]) -> tuple[float, ...]:
    """Compute the landmarks for mode match from reference images, u8 or u16[H,W]: eleven increasing levels in 0..255.

    One image yields its own percentiles, at the levels of mode none. With several, the percentiles of each are scaled
    to the standard range first, then averaged.

    Raises:
        InputError: there is no image.
        ImageError: `flat_match_image`, an image has one grey value between its 1st and 99th percentile.

    Source: Nyul and Udupa, On standardizing the MR image intensity scale, Magnetic Resonance in Medicine 42(6), 1999.

    """
    references = [_reference_levels(image, number) for number, image in enumerate(images, start=1)]
    if not references:
        raise InputError("--match-to contains no image, expected one or more: name an image or a folder of images")
    if len(references) > 1:
        references = [np.interp(levels, levels[[0, -1]], _STANDARD) for levels in references]
    mean: NDArray[np.float64] = np.mean(references, axis=0)
    # A saturated reference has equal percentiles, but landmarks must increase.
    gaps = _GAP * np.arange(len(_NYUL))
    rising = np.minimum(np.maximum.accumulate(mean - gaps) + gaps, 255.0 - gaps[::-1])
    return tuple(float(level) for level in rising)


def _cumulative_counts(content: Grey) -> NDArray[np.int64]:
    """Count the pixels at or below each grey value, without pure black."""
    size = int(np.iinfo(content.dtype).max) + 1
    counts = cv2.calcHist([content], [0], None, [size], [0, size]).ravel().astype(np.int64)
    counts[0] = 0
    return np.cumsum(counts)


def _percentiles(cumulative: NDArray[np.int64], shares: tuple[float, ...]) -> NDArray[np.int64]:
    """Find the grey values of these percentiles."""
    greys: NDArray[np.int64] = np.searchsorted(cumulative, cumulative[-1] * np.array(shares) / 100.0)
    return greys


def _equalize_table(cumulative: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Compute the table of histogram equalisation. Source: Gonzalez and Woods, Digital Image Processing, 3.3.1."""
    first = cumulative[np.flatnonzero(cumulative)[0]]
    spread = max(int(cumulative[-1] - first), 1)
    return _to_table((cumulative - first) * (255.0 / spread))


def _stretch_table(cumulative: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Compute the table that maps the 1st to 99th percentile linearly to 0..255."""
    low, high = (int(grey) for grey in _percentiles(cumulative, _STRETCH))
    return _to_table((np.arange(cumulative.size) - low) * (255.0 / max(high - low, 1)))


def _match_table(cumulative: NDArray[np.int64], landmarks: tuple[float, ...]) -> NDArray[np.uint8]:
    """Compute the table that maps Nyul's percentiles to the landmarks."""
    greys, inverse = np.unique(_percentiles(cumulative, _NYUL), return_inverse=True)
    # If several percentiles share one grey value, it maps to the mean of their landmarks.
    targets = np.bincount(inverse, landmarks) / np.bincount(inverse)
    slopes = np.diff(targets) / np.diff(greys) if greys.size > 1 else np.zeros(1)
    reach = cumulative.size
    greys = np.concatenate([greys[:1] - reach, greys, greys[-1:] + reach])
    targets = np.concatenate([targets[:1] - slopes[0] * reach, targets, targets[-1:] + slopes[-1] * reach])
    return _to_table(np.interp(np.arange(cumulative.size), greys, targets))


def _to_table(levels: NDArray[np.floating]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.rint(np.clip(levels, 0.0, 255.0)).astype(np.uint8)
    return rounded


def _check_landmarks(landmarks: tuple[float, ...]) -> None:
    if not landmarks:
        raise SettingsError("histogram match has no landmarks: pass --match-to with an image or a folder of images")
    if len(landmarks) != len(_NYUL) or (np.diff(landmarks) <= 0).any():
        raise SettingsError(
            f"preprocess.landmarks {' '.join(f'{level:g}' for level in landmarks)}: expected {len(_NYUL)} levels, each "
            "higher than the one before: compute them with --match-to"
        )


def _reference_levels(image: Grey, number: int) -> NDArray[np.float64]:
    """Compute the percentiles of a reference image at the levels of mode none, not rounded."""
    image = stretch_narrow(image)
    content = image[content_box(image)]
    levels = _percentiles(_cumulative_counts(content), _NYUL) / 2.0 ** (_bits(content) - 8)
    if levels[0] == levels[-1]:
        raise ImageError(
            "flat_match_image",
            f"image {number} of --match-to has one grey value between its 1st and 99th percentile, "
            "expected an X-ray: remove it",
        )
    return levels


def _equalize_tiles(shallow: NDArray[np.uint8], image: Grey, box: tuple[slice, slice]) -> NDArray[np.uint8]:
    """Apply CLAHE inside the box only: it would amplify the noise of a border."""
    # At 8 bits: OpenCV's 16-bit CLAHE rounds its limit to counts in 65536 bins, which flattens 12-bit images.
    levels = shallow.copy()
    levels[box] = cv2.createCLAHE(_CLAHE_LIMIT, _CLAHE_TILES).apply(shallow[box])
    levels *= image > 0
    return levels


def _bits(content: Grey) -> int:
    """Count the bits in use: a 12-bit image stored in 16 bits would be black otherwise."""
    return 8 if content.dtype == np.uint8 else max(8, int(content.max()).bit_length())


def _to_8_bits(image: Grey, bits: int) -> NDArray[np.uint8]:
    """Keep the upper 8 of these bits; a border brighter than the content is clipped to 255."""
    return cv2.convertScaleAbs(image >> (bits - 8))  # type: ignore[return-value]
