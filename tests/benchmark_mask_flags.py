"""Error rates of the flags of predicted masks: `python -m tests.benchmark_mask_flags --data ../shared/data`.

Prints how many reference masks of X-rays are flagged, and how many masks that are no pair of lungs, by kind.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from lungseg.imaging.run_lengths import Runs
from lungseg.inference import mask_flags
from tests.pictures.collection import read_xrays
from tests.pictures.fields import U8
from tests.pictures.wrong_masks import WRONG


def print_row(kind: str, masks: Iterable[U8]) -> None:
    flags = [mask_flags.find_flags(Runs.from_mask(mask), None) for mask in masks]
    flagged = sum(map(bool, flags))
    names = Counter(name for found in flags for name in found).most_common(3)
    described = ", ".join(f"{count} `{name}`" for name, count in names)
    print(f"| {kind} | {len(flags)} | {flagged} ({flagged / len(flags):.1%}) | {described} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cxr256 and covid44")
    data = parser.parse_args().data
    masks = {name: read_xrays(data / "cxr256" / name / "masks") for name in ("montgomery", "shenzhen")}
    sides = [read_xrays(data / "covid44" / f"{side}_lung") for side in ("left", "right")]
    masks["covid44"] = [np.maximum(left, right) for left, right in zip(*sides, strict=True)]
    masks = {name: [(mask > 127).astype(np.uint8) for mask in group] for name, group in masks.items()}
    print("| masks | number | flagged | as |\n|---|---|---|---|")
    for name, group in masks.items():
        print_row(f"reference, {name}", group)
    lungs = [mask for group in masks.values() for mask in group][::5]
    squares = [cv2.resize(mask, (256, 256), interpolation=cv2.INTER_NEAREST).astype(np.uint8) for mask in lungs]
    for kind, change in WRONG.items():
        print_row(kind, [np.ascontiguousarray(change(mask)).astype(np.uint8) for mask in squares])


if __name__ == "__main__":
    main()
