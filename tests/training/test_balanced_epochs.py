"""Epochs in which every dataset counts alike."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from lungseg.config import TrainSettings
from lungseg.training import balanced_epochs
from lungseg.training.method_digest import method_digest
from lungseg.training.run import result_settings

BALANCED = TrainSettings(balance_datasets=True)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_each_dataset_has_as_many_images_as_the_smallest(sizes: list[int], seed: int, epoch: int) -> None:
    datasets = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 3, sizes))
    drawn = balanced_epochs.draw(datasets, (seed, epoch))
    assert (np.diff(drawn) > 0).all()  # ascending, each once
    assert np.unique(datasets[drawn], return_counts=True)[1].tolist() == [min(sizes)] * len(sizes)
    assert drawn.tolist() == balanced_epochs.draw(datasets, (seed, epoch)).tolist()


def test_epochs_and_seeds_draw_other_images_of_the_larger_dataset() -> None:
    datasets = np.array([0] * 100 + [1] * 10)
    sets = [frozenset(balanced_epochs.draw(datasets, (seed, epoch)).tolist()) for seed in (0, 1) for epoch in range(60)]
    assert len(set(sets)) == len(sets)
    assert all(set(range(100, 110)) <= drawn for drawn in sets)
    assert len(frozenset().union(*sets)) > 105


@pytest.mark.parametrize(("settings", "images"), [(TrainSettings(), 7), (BALANCED, 4)])
def test_an_epoch_counts_the_drawn_images(settings: TrainSettings, images: int) -> None:
    rows = pa.table({"dataset": ["north"] * 6 + ["south"] * 3 + ["west"]})
    train = np.array([0, 1, 2, 4, 5, 6, 8])  # none of west
    assert balanced_epochs.images_per_epoch(settings, rows, train) == images


def test_only_balanced_runs_are_named_after_the_setting() -> None:
    assert "balance_datasets" not in result_settings(TrainSettings())
    assert result_settings(BALANCED)["balance_datasets"] is True
    assert method_digest(TrainSettings()) == method_digest() != method_digest(BALANCED)
