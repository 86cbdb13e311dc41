"""Dice of the model lungs on small pictures: `python -m tests.benchmark_small_images --data ../shared/data`.

Shrinks every twentieth X-ray of cxr256 and its reference mask, segments the small picture, and compares the masks at
that size. Prints a row for each size. The model was trained on these images, so only differences between sizes count.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

import lungseg
from lungseg.inference.segmenter import Segmenter
from lungseg.metrics.segmentation import count_pixels, dice
from tests.pictures.collection import read_xrays
from tests.pictures.fields import U8

_SIDES = (32, 40, 48, 64, 80, 96, 128, 256)  # px
_STEP = 20


def _shrink(image: U8, side: int) -> U8:
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def print_row(segment: Segmenter, side: int, images: list[U8], masks: list[U8]) -> None:
    """Segment images at a size, and print a row of the table."""
    results = segment([_shrink(image, side) for image in images])
    scores = np.array(
        [
            dice(count_pixels(result.mask, (_shrink(mask, side) > 127).astype(np.uint8)))
            for result, mask in zip(results, masks, strict=True)
            if result.ok
        ]
    )
    flagged = np.mean([bool(result.flags) for result in results])
    print(
        f"| {side} | {len(scores)} of {len(results)} | {scores.mean():.3f} | {scores.min():.3f} | "
        f"{np.mean(scores < 0.9):.1%} | {flagged:.1%} |",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cxr256")
    data = parser.parse_args().data / "cxr256"
    images, masks = (
        [picture for name in ("montgomery", "shenzhen") for picture in read_xrays(data / name / kind)[::_STEP]]
        for kind in ("images", "masks")
    )
    print("| side, px | segmented | mean Dice | lowest | below 0.9 | flagged |\n|---|---|---|---|---|---|")
    segment = lungseg.load()
    for side in _SIDES:
        print_row(segment, side, images, masks)


if __name__ == "__main__":
    main()
