"""The leakage audit: which X-rays are one picture, or of one patient, before any split is made. No Ray, no torch."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lungseg.dataset.hash_search import IndexPairs, ProgressCallback, near_pairs, no_progress
from lungseg.imaging import thumbnails
from lungseg.schema import SCHEMA, table

Grey = NDArray[np.uint8] | NDArray[np.uint16]
Row = dict[str, Any]
Kind = Literal["exact", "near", "same_patient"]

MAX_HASH_DISTANCE = 40
"""Hamming distance, of 256 bits, up to which any two pictures are compared. A picture and its JPEG, resized, brightened
or padded copy mostly lie below 30; the nearest two patients of Shenzhen and Montgomery at 256 px 42 apart."""
WIDE_HASH_DISTANCE, WIDE_SEARCH_IMAGES = 88, 1000
"""The same among the first 1000 images of each data set, a minute of work: it finds copies that lost 3 % of each side
too, and other X-rays of one person. The first, so that images added later change nothing between them."""
MIN_CORRELATION = 0.87
"""Correlation of detail from which two pictures are one. In the same data sets two patients reach 0.85 at most, but for
five pairs of 0.88 to 0.91 that by eye are one person at two visits; a changed copy has 0.91 or more, unless greys were
clipped or it was turned by 2 degrees."""

PAIRS = pa.schema(
    [
        ("first", pa.string()),
        ("second", pa.string()),
        ("kind", pa.string()),
        ("distance", pa.int32()),
        ("correlation", pa.float64()),
    ],
    metadata={"lungseg.schema": str(SCHEMA)},
)
"""One row a pair of the audit: the fields of Pair."""

INDEX_COLUMNS = ("dataset", "image_id", "patient_id", "pixel_digest", "phash")
"""What the audit looks at in an index row."""

_HASHED, _FREQUENCIES = 64, 16
_BORDERED = 256  # px, where the border is looked for
_SHOWN, _LINE = 0.4, 0.1  # share of the way from the darkest grey to the mean; share of a line that lies above it
_COMPARED, _SHIFT = 128, 8  # px: side of compared pictures, and how far one is moved over the other
_SCALES = (1.0, 0.94, 0.96, 0.98, 1.02, 1.04, 1.06)  # 1.06 finds again what lost 3 % on each side
_HOPELESS = 0.55  # correlation at the first scale from which no other one makes two pictures alike
_KEPT, _TOGETHER = 128, 32  # pictures in memory, 64 KiB each; pairs that are compared side by side
# What two hospitals would not both give by counting: a keyed hash, or a number of six digits and more.
_PERSON = re.compile(r"(?=.*\d)[0-9a-f]{12,}|\D*0*[1-9]\d{5,}")


@dataclass(frozen=True)
class Pair:
    """Two images, as `dataset/image_id`, first before second, that must not be parted by a split.

    distance: of the perceptual hashes, bits of 256, where they were compared. correlation: of detail, in -1..1, for
    near duplicates.
    """

    first: str
    second: str
    kind: Kind
    distance: int | None = None
    correlation: float | None = None


def image_key(row: Row) -> str:
    """Name a row's image over all data sets."""
    return f"{row['dataset']}/{row['image_id']}"


def fingerprint(image: Grey) -> str:
    """Hash what u8 or u16[H,W] shows: 64 hexadecimal digits, few bits of which change when it is saved anew.

    Signs of the 16x16 lowest frequencies (first bit, the mean, always 0) against their median, in 64x64 grey levels
    that are replaced by their ranks, inside a dark border. Source: the DCT hash of Zauner, Implementation and
    Benchmarking of Perceptual Image Hash Functions, 2010, 3.2.1; ranks and size are ours.
    """
    spectrum = cv2.dct(_ranks(_reduced(image, _HASHED)))[:_FREQUENCIES, :_FREQUENCIES].ravel()
    bits = spectrum > np.median(spectrum[1:])
    bits[0] = False
    return np.packbits(bits).tobytes().hex()


def find_pairs(
    rows: Sequence[Row],
    read: Callable[[Row], NDArray[np.uint8]],
    wide: bool = True,
    show: ProgressCallback = no_progress,
) -> list[Pair]:
    """Find pairs of index rows that show the same image or the same patient, sorted.

    exact: the pixel digests are equal. near: the hashes differ by at most MAX_HASH_DISTANCE bits (with `wide`, by
    WIDE_HASH_DISTANCE among the first images of each dataset) and the detail correlates at MIN_CORRELATION or more; a
    row without a hash is not compared. same_patient: the same patient_id within a dataset, or across datasets where
    the id is more than a small number that both could have assigned. Each image of a larger group is paired with the
    first image of the group in row order, so images appended to a dataset change no earlier pair.

    rows: with INDEX_COLUMNS. read: returns the prepared image u8[S,S] of a row. show: receives progress messages;
    the number of images to read grows with the square of the number of rows.
    """
    pictures = _by(rows, lambda row: row["pixel_digest"])
    copies = {image_key(row) for group in pictures.values() for row in group[1:]}
    patients = _by(rows, lambda row: row["patient_id"] and f"{row['dataset']}/{row['patient_id']}")
    people = _by([group[0] for group in patients.values() if _is_person(group)], lambda row: row["patient_id"])
    same = {*_to_first(patients.values()), *_to_first(people.values())}
    pairs = [
        *(Pair(*keys, "exact", 0) for keys in _to_first(pictures.values())),
        *_near([row for row in rows if row["phash"] and image_key(row) not in copies], read, wide, show),
        *(Pair(*keys, "same_patient") for keys in same),
    ]
    return sorted(pairs, key=lambda pair: (pair.first, pair.second, pair.kind))


def pairs_to_table(pairs: Iterable[Pair]) -> pa.Table:
    """Write pairs as a table of PAIRS."""
    return table([asdict(pair) for pair in pairs], PAIRS)


def correlate(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Correlate the detail of two pictures, f32[128,128] of `detail`, best over shifts of 8 px and scales of 6 %.

    -1..1, Pearson over the inner 112x112 px; 0 where one of them shows nothing.
    """
    inner = slice(_SHIFT, _COMPARED - _SHIFT)
    best = -1.0
    for scale in _SCALES:
        offset = (1.0 - scale) * (_COMPARED - 1) / 2.0
        matrix = np.array([[scale, 0.0, offset], [0.0, scale, offset]])
        moved = np.ascontiguousarray(cv2.warpAffine(other, matrix, other.shape)[inner, inner])
        if min(float(np.ptp(one)), float(np.ptp(moved))) < 1e-6:
            return 0.0  # OpenCV calls a template of one grey value alike to everything
        best = max(best, float(cv2.matchTemplate(one, moved, cv2.TM_CCOEFF_NORMED).max()))
        if best < _HOPELESS:
            break
    return best


def extract_detail(image: Grey) -> NDArray[np.float32]:
    """Take ribs and vessels out of u8 or u16[H,W]: f32[128,128], ranks of grey between two blurs, mean about 0.

    All frontal chests correlate at 0.9 in their outline; their detail lies elsewhere in each.
    """
    ranks = _ranks(_reduced(image, _COMPARED))
    between = cv2.GaussianBlur(ranks, (0, 0), 1.0) - cv2.GaussianBlur(ranks, (0, 0), 6.0)
    return between.astype(np.float32, copy=False)


def _reduced(image: Grey, side: int) -> Grey:
    """Shrink what lies inside a dark border to [side,side].

    Not inside the content box of preparation: the border has to be found in a copy with JPEG's ringing or noise too,
    and hashes must not change when that box is found better.
    """
    # Of a large picture every few pixels are enough.
    rows, columns = (max(1, length // _BORDERED) for length in image.shape)
    sparse: NDArray[Any] = np.ascontiguousarray(image[::rows, ::columns])
    small = cv2.resize(sparse, (_BORDERED, _BORDERED), interpolation=cv2.INTER_AREA)
    darkest, mean = int(small.min()), cv2.sumElems(small)[0] / small.size
    shown = small > int(darkest + _SHOWN * (mean - darkest))  # a whole number is above both or neither
    down, across = (np.flatnonzero(thumbnails.mean_along_axis(shown, axis) > _LINE) for axis in (1, 0))
    if down.size and across.size:
        small = small[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _ranks(image: Grey) -> NDArray[np.float32]:
    """Replace grey levels by their mean rank in 0..1, which no monotone change of contrast alters."""
    counts = np.bincount(image.ravel())
    levels = (np.cumsum(counts) - counts / 2.0) / image.size
    return levels.astype(np.float32)[image]


def _near(
    rows: Sequence[Row], read: Callable[[Row], NDArray[np.uint8]], wide: bool, show: ProgressCallback
) -> list[Pair]:
    near = _to_compare(rows, wide, show)
    pairs = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of it is decoding, which threads do side by side

        @lru_cache(maxsize=_KEPT)
        def shown(position: int) -> Future[NDArray[np.float32]]:
            return pool.submit(lambda: extract_detail(read(rows[position])))

        def compare(one: Future[NDArray[np.float32]], other: Future[NDArray[np.float32]]) -> float:
            return correlate(one.result(), other.result())

        for start in range(0, len(near), _TOGETHER):
            show(f"compared {start} of {len(near)} pairs whose hashes are near")
            together = near[start : start + _TOGETHER].tolist()
            # The pictures are asked for first, so no thread waits for one that has none to read it.
            pictures = [(shown(i), shown(j)) for i, j, _ in together]
            correlations = pool.map(compare, *zip(*pictures, strict=True))
            for (i, j, distance), correlation in zip(together, correlations, strict=True):
                if correlation >= MIN_CORRELATION:
                    first, second = sorted((image_key(rows[i]), image_key(rows[j])))
                    pairs.append(Pair(first, second, "near", distance, correlation))
    return pairs


def _to_compare(rows: Sequence[Row], wide: bool, show: ProgressCallback) -> IndexPairs:
    """List the positions of rows near enough to be compared, with their distance."""
    near = near_pairs([row["phash"] for row in rows], MAX_HASH_DISTANCE, show)
    if not wide:
        return near
    heads: defaultdict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        if len(heads[row["dataset"]]) < WIDE_SEARCH_IMAGES:
            heads[row["dataset"]].append(position)
    found = [near]
    for head in heads.values():
        far = near_pairs([rows[position]["phash"] for position in head], WIDE_HASH_DISTANCE)
        found.append(np.column_stack([np.array(head)[far[:, :2]], far[:, 2]]))
    return np.unique(np.concatenate(found), axis=0)


def _by(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Group rows; those whose key is empty are in no group."""
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if name := key(row):
            groups[name].append(row)
    return groups


def _to_first(groups: Iterable[list[Row]]) -> list[tuple[str, str]]:
    pairs = [sorted((image_key(group[0]), image_key(row))) for group in groups for row in group[1:]]
    return [(first, second) for first, second in pairs]


def _is_person(group: list[Row]) -> bool:
    """Say whether the id of a data set's patient means the same person elsewhere; an image's own id does not."""
    patient = group[0]["patient_id"]
    return all(row["image_id"] != patient for row in group) and _PERSON.fullmatch(patient) is not None
