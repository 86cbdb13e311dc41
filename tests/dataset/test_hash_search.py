"""Both search methods find exactly the hashes within a distance."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lungseg.dataset import hash_search


def bits(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def flipped(phash: str, count: int, random: np.random.Generator) -> str:
    number = int(phash, 16)
    for bit in random.choice(256, count, replace=False):
        number ^= 1 << int(bit)
    return f"{number:064x}"


DRAWN = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=30)


@given(DRAWN, st.integers(0, 256), st.integers(0, 2**32 - 1))
def test_candidates_are_all_pairs_within_the_distance(
    drawn: list[tuple[int, int]], max_distance: int, seed: int
) -> None:
    check_candidates(drawn, max_distance, seed)


@settings(max_examples=30)
@given(DRAWN, st.integers(60, 100), st.integers(0, 2**32 - 1))
def test_bands_miss_no_candidate(drawn: list[tuple[int, int]], max_distance: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hash_search, "_MAX_BRUTE_FORCE", 0)
        patch.setattr(hash_search, "_CHUNK_PAIRS", 7)
        check_candidates(drawn, max_distance, seed)


def check_candidates(drawn: list[tuple[int, int]], max_distance: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    centres = [random.bytes(32).hex() for _ in range(6)]
    phashes = [flipped(centres[centre], count, random) for centre, count in drawn]
    firsts = [i for i, phash in enumerate(phashes) if phash not in phashes[:i]]
    expected = [(phashes.index(phash), i, 0) for i, phash in enumerate(phashes) if i not in firsts]
    expected += [
        (i, j, distance)
        for i in firsts
        for j in firsts
        if i < j and (distance := bits(phashes[i], phashes[j])) <= max_distance
    ]
    assert hash_search.near_pairs(phashes, max_distance).tolist() == [list(pair) for pair in sorted(expected)]


def test_many_copies_are_paired_with_the_first_only() -> None:
    phashes = ["0f" * 32] * 20_000 + ["0f" * 31 + "0e"]
    pairs = hash_search.near_pairs(phashes, 40)
    assert pairs.tolist() == sorted([*([0, i, 0] for i in range(1, 20_000)), [0, 20_000, 1]])


def test_a_large_archive_is_searched_in_seconds() -> None:
    random = np.random.default_rng(0)
    phashes = [random.bytes(32).hex() for _ in range(20_000)]
    phashes[15_000:15_003] = [flipped(phashes[i], 39 + i, random) for i in range(3)]
    assert hash_search.near_pairs(phashes, 40).tolist() == [[0, 15_000, 39], [1, 15_001, 40]]
