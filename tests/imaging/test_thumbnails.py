"""Percentile ranks, and the visible area of a thumbnail."""

import numpy as np
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lungseg.imaging import thumbnails


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.integers(0, 30).map(float)))
def test_percentile_ranks_keep_order_and_share_ties(values: NDArray[np.float32]) -> None:
    ranks = thumbnails.percentile_ranks(values)
    expected = [((values < value).sum() + 0.5 * (values == value).sum()) / values.size for value in values]
    np.testing.assert_allclose(ranks, expected)


def test_visible_area_excludes_padding_and_collimation() -> None:
    thumb = np.full((64, 64), 255, np.float32)  # a white collimated frame, padded with black on both sides
    thumb[10:50, 15:52] = np.random.default_rng(0).uniform(60, 200, (40, 37))
    thumb[:, :8] = thumb[:, 56:] = 0
    rows, columns, visible = thumbnails.find_visible_area(thumb)
    assert (rows, columns) == (slice(10, 50), slice(15, 52))
    assert visible[10:50, 15:52].all()
    assert not visible[:, :8].any()
