"""Batches of a part: the same levels as one by one, and smaller batches where memory is short."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lungseg.errors import ResourceError
from lungseg.inference.batches import BatchPredictor
from lungseg.inference.ensemble import StartedBatch
from lungseg.inference.items import OpenedImage, PredictedImage, to_levels
from lungseg.schema import Record

SIZE = 16


class FakeEnsemble:
    """Scales squares; has memory for `fits` images at once."""

    device = torch.device("cpu")

    def __init__(self, fits: int) -> None:
        self.fits, self.sizes = fits, list[int]()

    def load(self, squares: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(squares)[:, None])

    def start(self, images: Tensor, digests: Sequence[str]) -> StartedBatch:
        if len(images) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(len(images))
        return StartedBatch(images[:, 0].float() / 255, [1] * len(images), [digest == "seen" for digest in digests])


def opened_images(count: int) -> list[OpenedImage]:
    random = np.random.default_rng(0)
    squares = random.integers(0, 256, (count, SIZE, SIZE), np.uint8)
    images = [OpenedImage(Record(f"{i}", "d", "u", pixel_digest="seen"), square) for i, square in enumerate(squares)]
    return [replace(images[0], square=None), *images[1:]]


def levels_of(results: Sequence[PredictedImage | None]) -> list[bytes | None]:
    return [result and result.levels for result in results]


def expected_levels(images: Sequence[OpenedImage]) -> list[bytes | None]:
    return [
        None if image.square is None else to_levels(image.square.astype(np.float32) / np.float32(255)).tobytes()
        for image in images
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
def test_levels_do_not_depend_on_the_batches(batch_size: int) -> None:
    images = opened_images(11)
    results = BatchPredictor(FakeEnsemble(16), batch_size)(images)  # type: ignore[arg-type]
    assert levels_of(results) == expected_levels(images)
    assert all('"seen_in_training": true' in result.details for result in results if result is not None)


def test_a_batch_that_memory_cannot_hold_is_halved_for_good() -> None:
    images, ensemble = opened_images(11), FakeEnsemble(2)
    predictor = BatchPredictor(ensemble, 8)  # type: ignore[arg-type]
    for _ in range(2):
        assert levels_of(predictor(images)) == expected_levels(images)
    assert predictor.batch_size == 2
    assert ensemble.sizes == [2] * 10


def test_memory_for_less_than_one_image_is_an_error() -> None:
    with pytest.raises(ResourceError, match="too little memory for one image"):
        BatchPredictor(FakeEnsemble(0), 4)(opened_images(3))  # type: ignore[arg-type]


def test_a_part_without_a_usable_image_is_predicted() -> None:
    assert BatchPredictor(FakeEnsemble(1), 4)(opened_images(1)) == [None]  # type: ignore[arg-type]
