"""A study's matrix as a picture: the darker a cell, the higher its Dice."""

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.study.cross_dataset import HELD_OUT, Matrix, grid

_FONT, _SCALE, _LINE = cv2.FONT_HERSHEY_SIMPLEX, 0.5, 34  # px a line
_EDGE = 12  # px around words
_PALE, _DARK = np.array([247.0, 251, 255]), np.array([8.0, 81, 156])  # RGB
_LOWEST = 0.8  # Dice that is as pale as nothing


def draw(matrix: Matrix) -> NDArray[np.uint8]:
    """Draw the cells u8[H,W,3], RGB: a row for each kind of runs, a column for each data set."""
    head, rows = grid(matrix)
    dice = {(one.trained.label, one.dataset): one.dice.mean for one in matrix.cells if one.dice is not None}
    note = f"Dice, mean over images, 95 % interval over patients; {HELD_OUT} held-out patients"
    widths = [max(_width(word) for word in column) + 2 * _EDGE for column in zip(head, *rows, strict=True)]
    lefts = [sum(widths[:i]) for i in range(len(widths))]
    size = (_LINE * (len(rows) + 2), max(sum(widths), _width(note) + 2 * _EDGE), 3)
    picture = np.full(size, 255, np.uint8)
    for line, words in enumerate([head, *rows]):
        for left, width, name, word in zip(lefts, widths, head, words, strict=True):
            value = dice.get((words[0], name))
            top = line * _LINE
            if value is not None and line:
                picture[top + 1 : top + _LINE - 1, left + 1 : left + width - 1] = _colour(value)
            _write(picture, word, (left + _EDGE, top), white=line > 0 and value is not None and _depth(value) > 0.5)
    _write(picture, note, (_EDGE, (len(rows) + 1) * _LINE), white=False)
    return picture


def _depth(dice: float) -> float:
    return float(np.clip((dice - _LOWEST) / (1 - _LOWEST), 0, 1))


def _colour(dice: float) -> NDArray[np.uint8]:
    colour: NDArray[np.uint8] = (_PALE + (_DARK - _PALE) * _depth(dice)).astype(np.uint8)
    return colour


def _width(word: str) -> int:
    return int(cv2.getTextSize(word, _FONT, _SCALE, 1)[0][0])


def _write(picture: NDArray[np.uint8], word: str, corner: tuple[int, int], white: bool) -> None:
    at = (corner[0], corner[1] + _LINE * 2 // 3)
    cv2.putText(picture, word, at, _FONT, _SCALE, (255, 255, 255) if white else (40, 40, 40), 1, cv2.LINE_AA)
