"""Find hashes that differ in few bits, among millions, without comparing all pairs."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

ProgressCallback = Callable[[str], object]
"""Receives progress messages of a long search."""

IndexPairs = NDArray[np.int64]
"""Positions of both hashes and their Hamming distance, i64[M,3]."""

_MAX_BRUTE_FORCE = 4096  # hashes; up to this number comparing all pairs is faster than sorting into bands
_CHUNK_PAIRS = 1 << 14  # pairs of hashes compared in one step: 1 MiB, which fits the CPU cache


def no_progress(_: str) -> None:
    """Ignore a progress message."""


def near_pairs(phashes: Sequence[str], max_distance: int, show: ProgressCallback = no_progress) -> IndexPairs:
    """List all pairs i < j of hashes with Hamming distance `max_distance` or less, each once, sorted.

    Of several equal hashes, each is paired with the first only, and only the first is compared with others: a million
    copies of one image give a million pairs. Exact multi-index hashing: the bits are split into bands, and two hashes
    within the distance differ in at least one band by no more than an equal share of it. Source: Norouzi, Punjani and
    Fleet, CVPR 2012.
    """
    firsts: dict[str, int] = {}
    copies = [(first, i, 0) for i, phash in enumerate(phashes) if (first := firsts.setdefault(phash, i)) != i]
    packed = np.frombuffer(bytes.fromhex("".join(firsts)), np.uint8).reshape(-1, 32)
    # Bands of at most 20 bits, one of which differs in at most two bits, need the fewest comparisons. A band takes
    # every n-th bit: neighbouring frequencies are correlated and would fill few buckets.
    count = max(max_distance // 3 + 1, 13)
    is_small = len(firsts) <= _MAX_BRUTE_FORCE
    bands = [slice(0, 0)] if is_small else [slice(first, None, count) for first in range(count)]
    positions = np.array(list(firsts.values()), np.int64)
    pairs = [np.array(copies, np.int64).reshape(-1, 3)]
    for done, band in enumerate(bands):
        show(f"comparing {len(firsts)} hashes, {done} of {len(bands)} bands done")
        for left, right, distance in _near_in_band(packed, band, max_distance // count, max_distance):
            pairs.append(np.column_stack([np.sort(positions[np.column_stack([left, right])]), distance]))
    return np.unique(np.concatenate(pairs), axis=0)


def _near_in_band(
    packed: NDArray[np.uint8], band: slice, max_flips: int, max_distance: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs of hashes u8[N,32] that differ in at most `max_flips` bits of a band and `max_distance` in total.

    Yields positions of both and their distance, i64[M] each. With an empty band, all pairs are compared.
    """
    bits = range(256)[band]
    keys = np.zeros(len(packed), np.int64)
    for place, bit in enumerate(bits):
        keys |= (packed[:, bit // 8] >> (7 - bit % 8) & 1).astype(np.int64) << place
    order = np.argsort(keys, kind="stable")
    keys, words = keys[order], np.ascontiguousarray(packed[order].view(np.uint64).T)
    starts = np.searchsorted(keys, np.arange((1 << len(bits)) + 1))
    for flips in range(max_flips + 1):
        for flipped_bits in combinations(range(len(bits)), flips):
            mask = sum(1 << bit for bit in flipped_bits)
            # The bucket without the highest flipped bit searches the other bucket. Within one bucket, each hash is
            # compared with those after it.
            rows = np.flatnonzero((keys >> flipped_bits[-1]) & 1 == 0) if flipped_bits else np.arange(keys.size)
            ends = starts[(keys[rows] ^ mask) + 1]
            begins = starts[keys[rows] ^ mask] if flipped_bits else rows + 1
            for left, right in _expand(rows, begins, ends):
                distance = np.zeros(left.size, np.int64)
                for word in words:  # a sum over an axis of length four is several times slower
                    distance += np.bitwise_count(word[left] ^ word[right])
                near = np.flatnonzero(distance <= max_distance)
                if near.size:
                    yield order[left[near]], order[right[near]], distance[near]


def _expand(
    rows: NDArray[np.int64], begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the pairs of each row with begins..ends, in chunks of about _CHUNK_PAIRS."""
    filled = np.flatnonzero(ends > begins)
    counts = (ends - begins)[filled]
    before = np.cumsum(counts) - counts
    for chunk in np.split(np.arange(filled.size), np.flatnonzero(np.diff(before // _CHUNK_PAIRS)) + 1):
        chunk_rows, length = filled[chunk], counts[chunk]
        offset = np.repeat(begins[chunk_rows] - (before[chunk] - before[chunk[:1]]), length)
        yield np.repeat(rows[chunk_rows], length), offset + np.arange(length.sum())
