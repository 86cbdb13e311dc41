"""Which models of an ensemble predict an image: those not trained on it, or all if all were."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Digests(Protocol):
    """A set of pixel digests."""

    def __contains__(self, digest: str, /) -> bool:
        """Return whether a digest is in the set."""
        ...


@dataclass(frozen=True)
class Selection:
    """images: for each model, the numbers of its images. counts: models of each image. seen: all were trained on it."""

    images: list[list[int]]
    counts: list[int]
    seen: list[bool]


def select_members(trained: Sequence[Digests], digests: Sequence[str]) -> Selection:
    """Select the models of each image. trained: digests of the images that each model was trained on."""
    seen = [all(digest in model for model in trained) for digest in digests]
    images = [[i for i, digest in enumerate(digests) if seen[i] or digest not in model] for model in trained]
    counts = [0] * len(digests)
    for numbers in images:
        for i in numbers:
            counts[i] += 1
    return Selection(images, counts, seen)
