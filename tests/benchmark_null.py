"""Simulate comparisons of equal and of different trainings and count p < 0.05, as a Markdown table.

Two sides of three seeds on the same patients. An image's Dice is its patient (sd 0.03), plus its training (sd
"trainings"), plus noise of this image in this training (sd 0.02, the interaction), plus, with a "method" sd, a
mean-zero difference between the two sides that is the patient's own. One fold, or five folds with own trainings each:
held-out images are tested by the trainings of their fold, cross images by all. Columns: share of p < 0.05 without a
difference, by the signed-rank test over patients, by a plain bootstrap of patients and trainings (the interaction
counts three times; normal distribution), and by lungseg; last column: by lungseg, where the true difference is three
times its standard deviation.

    python tests/benchmark_null.py
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from lungseg.metrics import bootstrap
from lungseg.metrics.training_noise import FoldEffects, Measurements, fold_effects

SEEDS, NOISE, PATIENT, POWER = 3, 0.02, 0.03, 3.0
SCENARIOS = (("held out", 1), ("held out", 5), ("cross", 5))
DEVIATIONS = ((0.0, 0.0), (0.003, 0.0), (0.01, 0.0), (0.01, 0.02))

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """A design. trainings, method: standard deviations."""

    role: str
    folds: int
    patients: int
    trainings: float
    method: float

    def tested(self, fold: int) -> NDArray[np.int64]:
        """Return the images that a fold's trainings test."""
        images = np.arange(self.patients)
        return images if self.role == "cross" else images[images % self.folds == fold]

    def deviation(self) -> float:
        """Return the standard deviation of the difference of the two means."""
        repeats = SEEDS * (self.folds if self.role == "cross" else 1)
        noise = 2 * NOISE**2 / (self.patients * repeats)
        trainings = 2 * self.trainings**2 / (SEEDS * self.folds)
        return math.sqrt(noise + trainings + self.method**2 / self.patients)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="simulated comparisons of each row")
    repeats = parser.parse_args().repeats
    print("| role | folds | patients | trainings | method | signed rank | plain bootstrap | lungseg | power |")
    print("|---|---|---|---|---|---|---|---|---|")
    for role, folds in SCENARIOS:
        for patients in (20, 138, 600):
            for deviations in DEVIATIONS:
                print(_row(Design(role, folds, patients, *deviations), repeats), flush=True)


def _row(design: Design, repeats: int) -> str:
    random = np.random.default_rng([design.folds, design.patients])
    equal = [list(_p_values(random, design, 0.0)) for _ in range(repeats)]
    powers = [list(_p_values(random, design, POWER * design.deviation()))[-1] for _ in range(repeats // 4)]
    shares = [*np.mean(np.array(equal) < 0.05, axis=0), np.mean(np.array(powers) < 0.05)]
    cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
    about = f"{design.role} | {design.folds} | {design.patients} | {design.trainings:g} | {design.method:g}"
    return f"| {about} | {cells} |"


def _p_values(random: np.random.Generator, design: Design, difference: float) -> Iterator[float]:
    """Draw two sides; yield p of the signed-rank test, of the plain bootstrap and of lungseg."""
    patients, method = random.normal(0.9, PATIENT, design.patients), random.normal(0, design.method, design.patients)
    first, effects = _draw(random, design, patients)
    second, others = _draw(random, design, patients + method + difference)
    names = [f"{patient:03d}" for patient in range(design.patients)]
    by_ranks = bootstrap.compare(second, first, names)
    yield by_ranks.p if by_ranks.p is not None else 1.0
    yield _plain_p(second - first, [*effects, *others])
    p = bootstrap.compare(second, first, names, [*effects, *others]).p
    yield p if p is not None else 1.0


def _draw(random: np.random.Generator, design: Design, patients: F64) -> tuple[F64, list[FoldEffects]]:
    """Draw one side; return the mean of each image over its trainings, and the effects of the trainings."""
    sums, counts, rows = np.zeros(design.patients), np.zeros(design.patients), []
    for fold in range(design.folds):
        images = design.tested(fold)
        values = patients[images, None] + random.normal(0, design.trainings, SEEDS)
        values = values + random.normal(0, NOISE, values.shape)
        sums[images] += values.sum(axis=1)
        counts[images] += SEEDS
        rows.append((values.ravel(), images.repeat(SEEDS), fold, np.tile(np.arange(SEEDS), images.size)))
    values, images, seeds = (np.concatenate([row[i] for row in rows]) for i in (0, 1, 3))
    folds = np.concatenate([np.full(row[1].size, row[2]) for row in rows])
    names = images.astype("U4")
    measured = Measurements(values, names, names, folds, seeds)  # type: ignore[arg-type]  # arrays are faster
    return sums / counts, list(fold_effects(measured).values())


def _plain_p(differences: F64, effects: Sequence[FoldEffects]) -> float:
    """Return p of a bootstrap that draws patients and trainings of crossed data and corrects nothing.

    Its variance in closed form: that of the patients, that of the trainings, and that of the interaction.
    """
    patients = float(differences.var()) / differences.size
    trainings = sum(fold.variance * (SEEDS - 1) / SEEDS for fold in effects)
    deviation = math.sqrt(patients + trainings + sum(fold.interaction for fold in effects))
    return 2 * NormalDist().cdf(-abs(float(differences.mean())) / deviation)


if __name__ == "__main__":
    main()
