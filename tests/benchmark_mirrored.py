"""Right and left lung in mirrored X-rays: `python -m tests.benchmark_mirrored STUDY --data ~/cxr`.

Segments the X-rays that each run of a study held out, as they are and mirrored left to right, and compares its masks of
the right and left lung with those of the archive, divided by side. Right is the left side of the image, also of a
mirrored one. Prints the figures of both, and the median share of the lungs that the runs mark as opacity.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow.compute as pc
import pyarrow.csv

import lungseg
from lungseg.arrays import U8
from lungseg.config.class_names import LUNG_SIDES
from lungseg.imaging.lung_sides import split_sides
from lungseg.ingest import sources


def held_out_pairs(data: str, folds: str, fold: int) -> list[tuple[U8, U8]]:
    """Return image u8[H,W] and mask of both lungs, u8[H,W] in {0,1}, of each X-ray with one mask in a fold."""
    table = pyarrow.csv.read_csv(folds)
    rows = table.filter(pc.equal(table["fold"], fold)).to_pylist()
    wanted = {(row["dataset"], row["image_id"]) for row in rows}
    records = [record for record in sources.discover(data) if (record.dataset, record.image_id) in wanted]
    return [
        (_read(record.image_uri), (_read(record.mask_uris[0]) > 127).astype(np.uint8))
        for record in records
        if len(record.mask_uris) == 1
    ]


def _read(path: str) -> U8:
    return np.asarray(cv2.imread(path, cv2.IMREAD_GRAYSCALE), np.uint8)


def _dice(mask: U8, reference: U8) -> float:
    return 2 * np.count_nonzero(mask & reference) / (np.count_nonzero(mask) + np.count_nonzero(reference))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="study with pooled runs of right_lung, left_lung, heart and opacity")
    parser.add_argument("--data", required=True, help="archive with one mask of both lungs an image")
    options = parser.parse_args()
    folds = [
        (lungseg.load(run), held_out_pairs(options.data, f"{options.study}/folds.csv", number))
        for run in Path(options.study).glob("pooled-fold*")
        for number in [json.loads((run / "run.json").read_text())["fold"]]
    ]
    print("| X-rays | number | right lung | left lung | lowest of a lung | heart_on_right | opaque |")
    print("|---|---|---|---|---|---|---|")
    for kind, step in (("as drawn", 1), ("mirrored", -1)):
        dice, opaque, flagged = [], [], 0
        for segmenter, image, mask in ((segmenter, *pair) for segmenter, pairs in folds for pair in pairs):
            result = segmenter(np.ascontiguousarray(image[:, ::step]))
            references = split_sides(np.ascontiguousarray(mask[:, ::step]))
            dice.append([_dice(result.masks[name], one) for name, one in zip(LUNG_SIDES, references, strict=True)])
            opaque.append(np.mean([result.row[f"{name}_opaque_share"] for name in LUNG_SIDES]))
            flagged += "heart_on_right" in result.flags
        right, left = np.mean(dice, axis=0)
        values = f"{right:.4f} | {left:.4f} | {np.min(dice):.3f} | {flagged} | {np.median(opaque):.2f}"
        print(f"| {kind} | {len(dice)} | {values} |", flush=True)


if __name__ == "__main__":
    main()
