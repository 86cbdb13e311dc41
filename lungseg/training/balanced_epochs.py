"""The training images of an epoch where every dataset counts alike (--balance-datasets). Needs no torch."""

import numpy as np
import pyarrow as pa

from lungseg.config import TrainSettings
from lungseg.dataset.folds import codes
from lungseg.dataset.masked_rows import Positions

_SEED = 7  # apart from that of the order of the images


def images_per_epoch(settings: TrainSettings, rows: pa.Table, train: Positions) -> int:
    """Return the number of images that an epoch uses of these rows of the training index."""
    if not settings.balance_datasets:
        return len(train)
    counts = np.unique(datasets_of(rows, train), return_counts=True)[1]
    return int(len(counts) * counts.min()) if len(counts) else 0


def datasets_of(rows: pa.Table, train: Positions) -> Positions:
    """Return a number for the dataset of each training row, i64[N]."""
    datasets: Positions = codes(rows.column("dataset"))[1][train]
    return datasets


def draw(datasets: Positions, key: tuple[int, int]) -> Positions:
    """Draw as many images of each dataset as the smallest one has; key is (seed, epoch).

    datasets: of each training row, i64[N]. Returns positions among these rows, ascending, each once.
    """
    random = np.random.default_rng((*key, _SEED))
    members = [np.flatnonzero(datasets == dataset) for dataset in np.unique(datasets)]
    size = min(map(len, members))
    return np.sort(np.concatenate([random.permutation(own)[:size] for own in members]))
