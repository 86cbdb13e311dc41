"""Numbers with their nouns."""

import pytest

from lungseg.plurals import counted


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (2, ("image",), "2 images"),
        (1, ("mask without an image", "masks without an image"), "1 mask without an image"),
        (11, ("mask without an image", "masks without an image"), "11 masks without an image"),
    ],
)
def test_noun_agrees_with_its_number(number: int, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text
