"""Duplicate audit: find X-rays that show the same image or the same patient, before data is split."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lungseg import storage
from lungseg.arrays import Grey, Row
from lungseg.dataset.hash_search import IndexPairs, ProgressCallback, near_pairs, no_progress
from lungseg.imaging import thumbnails
from lungseg.plurals import counted
from lungseg.schema import SCHEMA, table

Kind = Literal["exact", "near", "same_patient"]

MAX_HASH_DISTANCE = 40
"""Maximum Hamming distance, of 256 bits, at which two images are compared. An image and its JPEG, resized, brightened
or padded copy are mostly below 30; the two nearest patients of Shenzhen and Montgomery at 256 px are 42 apart."""
WIDE_HASH_DISTANCE, WIDE_SEARCH_IMAGES = 88, 1000
"""The same among the first 1000 images of each dataset, which takes at most half a minute. It also finds copies that
are cropped by 3 % on each side, and other X-rays of one person. Only the first images, so that images added later
change none of these pairs."""
MIN_CORRELATION = 0.87
"""Minimum correlation of detail of a near duplicate. In the same datasets two patients reach at most 0.85, except five
pairs of 0.88 to 0.91 that by eye show one person at two visits. A changed copy has 0.91 or more, unless grey values
were clipped or it was rotated by 2 degrees."""

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
"""Schema of the pair table: the fields of Pair."""

PAIRS_FILE = "duplicates.parquet"
INDEX_COLUMNS = ("dataset", "image_id", "patient_id", "pixel_digest", "phash")
"""Index columns that the audit reads."""

_HASH_SIDE, _FREQUENCIES = 64, 16
_BORDER_SIDE = 256  # px, of the reduced image in which the border is detected
# A line belongs to the content if this share of it is above a grey level, itself this share of the way from the darkest
# grey to the mean.
_LINE_SHARE, _LEVEL_SHARE = 0.1, 0.4
_DETAIL_SIDE, _MAX_SHIFT = 128, 8  # px
_SCALES = (1.0, 0.94, 0.96, 0.98, 1.02, 1.04, 1.06)  # 1.06 matches a copy that is cropped by 3 % on each side
_MIN_FIRST_CORRELATION = 0.55  # below this at the first scale, no other scale reaches MIN_CORRELATION
# 64 KiB per image, 69 MiB in all. The images of the wide search in one dataset fit, and datasets are compared one after
# another. Reading an image takes ten times longer than comparing a pair.
_CACHED_IMAGES, _PAIRS_PER_BATCH = WIDE_SEARCH_IMAGES + 100, 32
# Ids that two hospitals would not both assign by counting: a keyed hash, or a number of six or more digits.
_UNIQUE_ID = re.compile(r"(?=.*\d)[0-9a-f]{12,}|\D*0*[1-9]\d{5,}")


@dataclass(frozen=True)
class Pair:
    """Two images, as sorted `dataset/image_id`, that must be on the same side of a split.

    distance: Hamming distance of the perceptual hashes, of 256 bits, where they were compared. correlation: of detail,
    in -1..1, for near duplicates.
    """

    first: str
    second: str
    kind: Kind
    distance: int | None = None
    correlation: float | None = None


def image_key(row: Row) -> str:
    """Return the name of a row's image, unique over all datasets."""
    return f"{row['dataset']}/{row['image_id']}"


def fingerprint(image: Grey) -> str:
    """Return the perceptual hash of u8 or u16[H,W] as 64 hexadecimal digits; re-encoding an image changes few bits.

    The dark border is removed, the image reduced to 64x64, and grey levels replaced by their ranks. Each bit states
    whether one of the 16x16 lowest DCT frequencies is above their median (the first bit, the mean, is always 0).
    Source: the DCT hash of Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, 3.2.1,
    with ranks and sizes of our own.
    """
    spectrum = cv2.dct(_rank_levels(_crop_and_resize(image, _HASH_SIDE)))[:_FREQUENCIES, :_FREQUENCIES].ravel()
    bits = spectrum > np.median(spectrum[1:])
    bits[0] = False
    return np.packbits(bits).tobytes().hex()


def find_pairs(
    rows: Sequence[Row], read: Callable[[Row], NDArray[np.uint8]], show: ProgressCallback = no_progress
) -> list[Pair]:
    """Find pairs of index rows that show the same image or the same patient, sorted.

    exact: the pixel digests are equal. near: the hashes differ by at most MAX_HASH_DISTANCE bits (by
    WIDE_HASH_DISTANCE among the first images of each dataset) and the detail correlates at MIN_CORRELATION or more; a
    row without a hash is not compared. same_patient: the same patient_id within a dataset, or across datasets where
    the id is more than a small number that both could have assigned. Each image of a larger group is paired with the
    first image of the group in row order, so images appended to a dataset change no earlier pair.

    rows: with INDEX_COLUMNS. read: returns the prepared image u8[S,S] of a row. show: receives progress messages;
    the number of images to read grows with the square of the number of rows.
    """
    same_pixels = _group_by(rows, lambda row: row["pixel_digest"])
    copies = {image_key(row) for group in same_pixels.values() for row in group[1:]}
    patients = _group_by(rows, lambda row: row["patient_id"] and f"{row['dataset']}/{row['patient_id']}")
    people = _group_by(
        [group[0] for group in patients.values() if _has_unique_id(group)], lambda row: row["patient_id"]
    )
    same_patient = {*_pair_with_first(patients.values()), *_pair_with_first(people.values())}
    pairs = [
        *(Pair(*keys, "exact", 0) for keys in _pair_with_first(same_pixels.values())),
        *_find_near([row for row in rows if row["phash"] and image_key(row) not in copies], read, show),
        *(Pair(*keys, "same_patient") for keys in same_patient),
    ]
    return sorted(pairs, key=lambda pair: (pair.first, pair.second, pair.kind))


def count_duplicates(pairs: Iterable[Row]) -> dict[str, int]:
    """Count the pairs of equal and of nearly equal images, and the patients with several images."""
    keys: dict[str, set[tuple[str, str]]] = {kind: set() for kind in get_args(Kind)}
    for pair in pairs:
        keys[pair["kind"]].add((pair["first"], pair["second"]))
    # `find_pairs` pairs each image with the first one of its patient: the pairs of a patient are one fewer than images.
    images = {image for pair in keys["same_patient"] for image in pair}
    return {
        "exact": len(keys["exact"]),
        "near": len(keys["near"]),
        "patients": len(images) - len(keys["same_patient"]),
    }


def describe_duplicates(counts: Mapping[str, int], folder: str) -> str:
    """Say how many duplicates there are, and what folds do with them. counts: of `count_duplicates`."""
    return (
        f"{counted(counts['exact'], 'exact duplicate pair')} and {counted(counts['near'], 'near duplicate pair')}, "
        f"each taken for one patient; listed patients with several images: {counts['patients']}; the images of a "
        f"pair or patient are always in the same fold: {storage.join(folder, PAIRS_FILE)}"
    )


def pairs_to_table(pairs: Iterable[Pair]) -> pa.Table:
    """Convert pairs to a table of schema PAIRS."""
    return table([asdict(pair) for pair in pairs], PAIRS)


def correlate(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return the maximum correlation of two images over shifts up to 8 px and scales up to 6 %.

    one, other: f32[128,128] of `extract_detail`. Pearson correlation in -1..1 over the inner 112x112 px; 0 where one of
    them is uniform.
    """
    inner = slice(_MAX_SHIFT, _DETAIL_SIDE - _MAX_SHIFT)
    best = -1.0
    for scale in _SCALES:
        offset = (1.0 - scale) * (_DETAIL_SIDE - 1) / 2.0
        matrix = np.array([[scale, 0.0, offset], [0.0, scale, offset]])
        moved = np.ascontiguousarray(cv2.warpAffine(other, matrix, other.shape)[inner, inner])
        if min(float(np.ptp(one)), float(np.ptp(moved))) < 1e-6:
            return 0.0  # OpenCV reports a perfect match for a uniform template
        best = max(best, float(cv2.matchTemplate(one, moved, cv2.TM_CCOEFF_NORMED).max()))
        if best < _MIN_FIRST_CORRELATION:
            break
    return best


def extract_detail(image: Grey) -> NDArray[np.float32]:
    """Return the ribs and vessels of u8 or u16[H,W] as f32[128,128], mean about 0.

    Computed as the difference of two blurs of the grey level ranks. The outlines of all frontal chests correlate at
    0.9; fine detail differs between patients.
    """
    ranks = _rank_levels(_crop_and_resize(image, _DETAIL_SIDE))
    between = cv2.GaussianBlur(ranks, (0, 0), 1.0) - cv2.GaussianBlur(ranks, (0, 0), 6.0)
    return between.astype(np.float32, copy=False)


def _crop_and_resize(image: Grey, side: int) -> Grey:
    """Remove the dark border and resize the content to [side,side].

    Independent of the content box of preparation: the border must also be found in copies with noise or JPEG artefacts,
    and hashes must not change when the detection of that box improves.
    """
    # Subsampling a large image is accurate enough.
    rows, columns = (max(1, length // _BORDER_SIDE) for length in image.shape)
    sparse: NDArray[Any] = np.ascontiguousarray(image[::rows, ::columns])
    small = cv2.resize(sparse, (_BORDER_SIDE, _BORDER_SIDE), interpolation=cv2.INTER_AREA)
    darkest, mean = int(small.min()), cv2.sumElems(small)[0] / small.size
    is_content = small > int(darkest + _LEVEL_SHARE * (mean - darkest))  # pixels are integers: rounding down is exact
    down, across = (np.flatnonzero(thumbnails.mean_along_axis(is_content, axis) > _LINE_SHARE) for axis in (1, 0))
    if down.size and across.size:
        small = small[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _rank_levels(image: Grey) -> NDArray[np.float32]:
    """Replace grey levels by their mean rank in 0..1, which monotone contrast changes do not alter."""
    counts = np.bincount(image.ravel())
    levels = (np.cumsum(counts) - counts / 2.0) / image.size
    return levels.astype(np.float32)[image]


def _find_near(rows: Sequence[Row], read: Callable[[Row], NDArray[np.uint8]], show: ProgressCallback) -> list[Pair]:
    candidates = _list_candidates(rows, show)
    pairs = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding takes most of the time and runs in parallel

        @lru_cache(maxsize=_CACHED_IMAGES)
        def load_detail(position: int) -> Future[NDArray[np.float32]]:
            return pool.submit(lambda: extract_detail(read(rows[position])))

        def compare(one: Future[NDArray[np.float32]], other: Future[NDArray[np.float32]]) -> float:
            return correlate(one.result(), other.result())

        for start in range(0, len(candidates), _PAIRS_PER_BATCH):
            show(f"compared {start} of {counted(len(candidates), 'pair')} with similar hashes")
            batch = candidates[start : start + _PAIRS_PER_BATCH].tolist()
            # All images are submitted before the comparisons, so no comparison blocks the thread that its image needs.
            details = [(load_detail(i), load_detail(j)) for i, j, _ in batch]
            correlations = pool.map(compare, *zip(*details, strict=True))
            for (i, j, distance), correlation in zip(batch, correlations, strict=True):
                if correlation >= MIN_CORRELATION:
                    first, second = sorted((image_key(rows[i]), image_key(rows[j])))
                    pairs.append(Pair(first, second, "near", distance, correlation))
    return pairs


def _list_candidates(rows: Sequence[Row], show: ProgressCallback) -> IndexPairs:
    """List the positions of rows whose images must be compared, with their hash distance."""
    first_positions: defaultdict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        if len(first_positions[row["dataset"]]) < WIDE_SEARCH_IMAGES:
            first_positions[row["dataset"]].append(position)
    pairs = [near_pairs([row["phash"] for row in rows], MAX_HASH_DISTANCE, show)]
    for positions in first_positions.values():
        wide_pairs = near_pairs([rows[position]["phash"] for position in positions], WIDE_HASH_DISTANCE)
        pairs.append(np.column_stack([np.array(positions)[wide_pairs[:, :2]], wide_pairs[:, 2]]))
    return np.unique(np.concatenate(pairs), axis=0)


def _group_by(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Group rows by key; rows with an empty key are in no group."""
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if name := key(row):
            groups[name].append(row)
    return groups


def _pair_with_first(groups: Iterable[list[Row]]) -> list[tuple[str, str]]:
    pairs = [sorted((image_key(group[0]), image_key(row))) for group in groups for row in group[1:]]
    return [(first, second) for first, second in pairs]


def _has_unique_id(group: list[Row]) -> bool:
    """Return whether a patient id means the same person in another dataset; an id that is an image id does not."""
    patient = group[0]["patient_id"]
    return all(row["image_id"] != patient for row in group) and _UNIQUE_ID.fullmatch(patient) is not None
