"""Which doubts are unusual among images that were predicted together."""

import pytest

from lungseg.predictions.ranking import highest_usual_doubt


def test_small_differences_among_similar_images_are_usual() -> None:
    doubts = [0.015, 0.015, 0.015, 0.015, 0.015, 0.016, 0.017, 0.021]
    assert max(doubts) < highest_usual_doubt(doubts) < 0.03


def test_a_wide_range_of_doubts_sets_the_limit() -> None:
    assert highest_usual_doubt([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx(0.07)
