"""How well doubt ranks predictions by their Dice, beside mean probability and border entropy.

    python -m tests.benchmark_doubt --predictions predictions

Only images that no model was trained on and that have a reference mask count. Prints a Markdown table.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from lungseg.arrays import Row
from lungseg.predictions.parts import part_files, read_part

_SCORES = {"doubt": 1, "mean_probability": -1, "border_entropy": 1}
"""Columns, and whether they rise or fall with doubt."""
_SHARE = 0.1


def main(words: Sequence[str] | None = None) -> None:
    """Print the table of the folders of predictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", nargs="+", required=True)
    folders = parser.parse_args(words).predictions
    rows = [row for folder in folders for path in part_files(folder) for row in _read(path)]
    names = [f"`{name}`" for name in _SCORES]
    header = ["X-rays", "images", "mean Dice", "mean of 1 - doubt", *names]
    header += [f"lowest tenth found by {name}" for name in names]
    print(f"| {' | '.join(header)} |")
    print("|---" * len(header) + "|")
    for dataset in sorted({row["dataset"] for row in rows}):
        print(_line(dataset, [row for row in rows if row["dataset"] == dataset]))


def _read(path: str) -> list[Row]:
    rows: list[Row] = read_part(path).drop_columns(["mask"]).to_pylist()
    return [row for row in rows if row["dice"] is not None and row["seen_in_training"] is False]


def _line(dataset: str, rows: list[Row]) -> str:
    dice = np.array([row["dice"] for row in rows])
    scores = [np.array([sign * (row[name] or 0.0) for row in rows]) for name, sign in _SCORES.items()]
    ranks = [f"{spearmanr(score, -dice).statistic:.2f}" for score in scores]
    counts = [_count_lowest(score, dice) for score in scores]
    expected = float(np.mean([1 - row["doubt"] for row in rows]))
    return f"| {dataset} | {len(rows)} | {dice.mean():.3f} | {expected:.3f} | {' | '.join([*ranks, *counts])} |"


def _count_lowest(score: NDArray[np.float64], dice: NDArray[np.float64]) -> str:
    """Count how many of the tenth with the lowest Dice are in the two tenths with the highest score."""
    count = max(1, round(_SHARE * dice.size))
    lowest, doubtful = set(np.argsort(dice)[:count].tolist()), set(np.argsort(-score)[: 2 * count].tolist())
    return f"{len(lowest & doubtful)} of {count}"


if __name__ == "__main__":
    main(sys.argv[1:])
