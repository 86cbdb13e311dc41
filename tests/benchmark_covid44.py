"""Dice against outlines that pass behind the heart: `python -m tests.benchmark_covid44 PREDICTIONS --data ~/covid44`.

PREDICTIONS is the output of infer for the images of ~/covid44: 42 X-rays, most with pneumonia. Their reference masks
include the lung behind the heart and the mediastinum, which Montgomery's and Shenzhen's leave out, so pixels of the
heart mask are ignored here. Prints the mean with its 95 % interval over patients, and the ten lowest images.
"""

import argparse
import csv
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lungseg.imaging.codecs import decode_rle
from lungseg.metrics import bootstrap

U8 = NDArray[np.uint8]


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask file as bool[H,W]."""
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert mask is not None, path
    return mask > 127


def dice_beside_heart(predicted: U8, row: dict[str, str], data: Path) -> float:
    """Return the Dice of u8[H,W] with both lungs of a row of listing.csv, where no heart is."""
    reference = read_mask(data / row["left_lung"]) | read_mask(data / row["right_lung"])
    counted = ~read_mask(data / row["heart"])
    mask, reference = (predicted > 0) & counted, reference & counted
    return 2.0 * (mask & reference).sum() / (mask.sum() + reference.sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    listing = {Path(row["image"]).stem: row for row in csv.DictReader((arguments.data / "listing.csv").open())}
    rows = pq.read_table(arguments.predictions / "rows").to_pylist()
    scores = {
        row["image_id"]: dice_beside_heart(
            decode_rle(row["mask"], row["height"], row["width"]), listing[row["image_id"]], arguments.data
        )
        for row in rows
        if row["mask"] is not None
    }
    patients = [listing[name]["patient"] for name in scores]
    mean = bootstrap.summarise(list(scores.values()), patients)
    print(f"{len(scores)} of {len(rows)} images segmented")
    print(f"Dice beside the heart: {mean.mean:.4f} [{mean.low:.4f}, {mean.high:.4f}]")
    for name, score in sorted(scores.items(), key=lambda item: item[1])[:10]:
        print(f"  {score:.3f}  {name}  {listing[name]['finding']}, {listing[name]['view']}")


if __name__ == "__main__":
    main()
