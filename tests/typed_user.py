"""Code of a user, which mypy checks with the types of the package in strict mode."""

from pathlib import Path

import numpy as np

import lungseg


def segment_folder(model: str, folder: Path, out: Path) -> dict[str, int]:
    """Save the mask of each PNG image of a folder; return the pixels of the right lungs."""
    segment: lungseg.Segmenter = lungseg.load(model, threshold=0.5)
    areas: dict[str, int] = {}
    for path in sorted(folder.glob("*.png")):
        try:
            result: lungseg.Result = segment(path)
        except lungseg.InputError as error:
            areas[str(error)] = 0
            continue
        areas[result.save(out)] = int(result.right.sum()) + result.areas_px["left"]
    return areas


def count_masks(segment: lungseg.Segmenter, arrays: list[np.ndarray[tuple[int, int], np.dtype[np.uint16]]]) -> int:
    """Segment a list of arrays; return how many have a mask."""
    results: list[lungseg.Result] = segment(arrays, polarity="bone-black")
    return sum(result.ok for result in results)
