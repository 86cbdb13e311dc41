"""Error rates of the flag `heart_on_right`: `python -m tests.benchmark_heart_side --data ../shared/data`.

Prints how many reference masks of covid44 are flagged, as drawn and mirrored left to right.
"""

import argparse
from pathlib import Path

import numpy as np

from lungseg.config.class_names import HEART, LEFT_LUNG, RIGHT_LUNG
from lungseg.imaging.derived_measures import find_mirrored, heart_offset
from lungseg.imaging.run_lengths import Runs
from tests.pictures.collection import read_xrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with covid44")
    folder = parser.parse_args().data / "covid44"
    names = (HEART, RIGHT_LUNG, LEFT_LUNG)
    images = list(zip(*(read_xrays(folder / name) for name in names), strict=True))
    print("| reference masks | number | flagged | lowest, median and highest offset |\n|---|---|---|---|")
    for kind, step in (("as drawn", 1), ("mirrored", -1)):
        masks = [
            {
                name: Runs.from_mask(np.ascontiguousarray(mask[:, ::step] > 127).astype(np.uint8))
                for name, mask in zip(names, image, strict=True)
            }
            for image in images
        ]
        flagged = sum(bool(find_mirrored(of_image)) for of_image in masks)
        offsets = [heart_offset(of_image) or 0.0 for of_image in masks]
        places = ", ".join(f"{value:.3f}" for value in (min(offsets), np.median(offsets), max(offsets)))
        print(f"| {kind} | {len(masks)} | {flagged} ({flagged / len(masks):.1%}) | {places} |")


if __name__ == "__main__":
    main()
