"""Captions show file names in many scripts."""

import numpy as np
import pytest

from lungseg.arrays import U8
from lungseg.imaging.caption import TEXT, add_caption


def drawn(text: str) -> U8:
    return add_caption(np.zeros((8, 300, 3), np.uint8), [text], [("right lung", TEXT)])


@pytest.mark.parametrize("letter", [*"éßñøłİșЖλ胸線한ע"])
def test_letters_beyond_ascii_are_drawn(letter: str) -> None:
    assert (drawn(letter) != drawn("?")).any()
    assert (drawn(letter) != drawn(" ")).any()


def test_a_letter_that_the_font_lacks_is_a_question_mark() -> None:
    for letter in ("ไ", "\U0001f600", "\n", "\ud800"):
        np.testing.assert_array_equal(drawn(f"a{letter}b"), drawn("a?b"))


def test_separate_accents_are_drawn_with_their_letter() -> None:
    np.testing.assert_array_equal(drawn("Ro\u0308ntgen"), drawn("Röntgen"))
