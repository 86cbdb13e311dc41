"""Hashes that differ in few bits, found among millions without comparing all pairs. No Ray, no torch."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

ProgressCallback = Callable[[str], object]
"""Takes, in words, how far a long search is."""

IndexPairs = NDArray[np.int64]
"""Two positions and the distance of their hashes, i64[M,3]."""

_FEW = 4096  # hashes, of which all pairs are compared sooner than they are sorted into bands
_AT_ONCE = 1 << 14  # pairs of hashes compared in one step: 1 MiB, which the cores' caches hold


def no_progress(_: str) -> None:
    """Show nothing."""


def near_pairs(phashes: Sequence[str], most: int, show: ProgressCallback = no_progress) -> IndexPairs:
    """List all pairs i < j of hashes that differ in `most` bits or fewer, each once, sorted.

    Of hashes that are equal each is paired with the first only, and only the first with others: a million copies of one
    picture are a million pairs. Exact, by multi-index hashing: the bits are dealt to bands, and two hashes within
    `most` bits differ in some band by no more than their even share. Source: Norouzi, Punjani and Fleet, CVPR 2012.
    """
    firsts: dict[str, int] = {}
    copies = [(first, i, 0) for i, phash in enumerate(phashes) if (first := firsts.setdefault(phash, i)) != i]
    packed = np.frombuffer(bytes.fromhex("".join(firsts)), np.uint8).reshape(-1, 32)
    # Bands of 20 bits or fewer, one of which differs in two at the most, ask for the fewest comparisons. A band takes
    # every n-th bit: neighbouring frequencies go together and would fill few buckets.
    count = max(most // 3 + 1, 13)
    bands = [slice(0, 0)] if len(firsts) <= _FEW else [slice(first, None, count) for first in range(count)]
    where = np.array(list(firsts.values()), np.int64)
    found = [np.array(copies, np.int64).reshape(-1, 3)]
    for done, band in enumerate(bands):
        show(f"comparing {len(firsts)} hashes, {done} of {len(bands)} bands done")
        for left, right, distance in _near_in_band(packed, band, most // count, most):
            found.append(np.column_stack([np.sort(where[np.column_stack([left, right])]), distance]))
    return np.unique(np.concatenate(found), axis=0)


def _near_in_band(
    packed: NDArray[np.uint8], band: slice, flipped: int, most: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs of hashes u8[N,32] that differ in `flipped` bits of a band and `most` of all, or fewer.

    Positions of both and their distance, i64[M] each. Without a bit in the band, all pairs are compared.
    """
    bits = range(256)[band]
    keys = np.zeros(len(packed), np.int64)
    for place, bit in enumerate(bits):
        keys |= (packed[:, bit // 8] >> (7 - bit % 8) & 1).astype(np.int64) << place
    order = np.argsort(keys, kind="stable")
    keys, words = keys[order], np.ascontiguousarray(packed[order].view(np.uint64).T)
    starts = np.searchsorted(keys, np.arange((1 << len(bits)) + 1))
    for flips in range(flipped + 1):
        for chosen in combinations(range(len(bits)), flips):
            mask = sum(1 << bit for bit in chosen)
            # Of two buckets the one without the highest bit looks for the other; inside one, each for those behind it.
            rows = np.flatnonzero((keys >> chosen[-1]) & 1 == 0) if chosen else np.arange(keys.size)
            ends = starts[(keys[rows] ^ mask) + 1]
            begins = starts[keys[rows] ^ mask] if chosen else rows + 1
            for left, right in _expand(rows, begins, ends):
                distance = np.zeros(left.size, np.int64)
                for word in words:  # one after the other: sums over rows of four take NumPy several times longer
                    distance += np.bitwise_count(word[left] ^ word[right])
                near = np.flatnonzero(distance <= most)
                if near.size:
                    yield order[left[near]], order[right[near]], distance[near]


def _expand(
    rows: NDArray[np.int64], begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the pairs of each row with begins..ends, about _AT_ONCE in one piece."""
    filled = np.flatnonzero(ends > begins)
    counts = (ends - begins)[filled]
    before = np.cumsum(counts) - counts
    for piece in np.split(np.arange(filled.size), np.flatnonzero(np.diff(before // _AT_ONCE)) + 1):
        own, length = filled[piece], counts[piece]
        offset = np.repeat(begins[own] - (before[piece] - before[piece[:1]]), length)
        yield np.repeat(rows[own], length), offset + np.arange(length.sum())
