import numpy as np

from lungseg.study import cross_dataset, heatmap
from lungseg.study.cross_dataset import Cell, Matrix, Trained


def _cell(dataset: str, dice: float) -> Cell:
    summary = cross_dataset.bootstrap.summarise([dice], ["p"])
    return Cell(Trained("pooled", "a+b"), dataset, "held-out", 1, 1, {"dice": summary}, {})


def test_a_higher_dice_is_darker() -> None:
    picture = heatmap.draw(Matrix((_cell("a", 0.99), _cell("b", 0.85)), (), ()))
    assert picture.dtype == np.uint8
    assert picture.shape[0] == 3 * 34
    row = picture[34 + 3]  # above the words
    colours = [tuple(colour) for colour in np.unique(row, axis=0) if tuple(colour) != (255, 255, 255)]
    assert colours == sorted([tuple(heatmap._colour(0.99)), tuple(heatmap._colour(0.85))])
    assert heatmap._colour(0.99).sum() < heatmap._colour(0.85).sum()


def test_nothing_is_a_picture_too() -> None:
    assert heatmap.draw(Matrix((), (), ())).shape[2] == 3
