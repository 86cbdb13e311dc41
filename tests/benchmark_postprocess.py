"""Effect of post-processing on each image: `python tests/benchmark_postprocess.py BEFORE AFTER`.

BEFORE and AFTER are outputs of jobs/infer.py for the same archive and models with different settings. Prints the means
per dataset and the paired differences with their 95 % interval over patients and p value, as Markdown.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lungseg.metrics import bootstrap

MEASURES = ("dice", "iou", "hd95_px", "assd_px")


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Read the rows with metrics of images that no model was trained on, by dataset and image."""
    rows = [row for path in sorted(folder.glob("rows/part-*.parquet")) for row in pq.read_table(path).to_pylist()]
    tested = [row for row in rows if row["dice"] is not None and not row["seen_in_training"]]
    return {(row["dataset"], row["image_id"]): row for row in tested}


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    before, after = rows_of(arguments.before), rows_of(arguments.after)
    if before.keys() != after.keys():
        sys.exit("the folders have different images: predict the same archive twice")
    print(
        "| dataset | images | changed | | before | after | after minus before | p |\n|---|---|---|---|---|---|---|---|"
    )
    for dataset in [*sorted({name for name, _ in before}), "all"]:
        keys = [key for key in before if dataset in (key[0], "all")]
        changed = sum(before[key]["mask"] != after[key]["mask"] for key in keys)
        for name in MEASURES:
            both = [key for key in keys if None not in (before[key][name], after[key][name])]
            old, new = ([side[key][name] for key in both] for side in (before, after))
            comparison = bootstrap.compare(new, old, [f"{key[0]} {before[key]['patient_id']}" for key in both])
            means = f"{sum(old) / len(old):.4f} | {sum(new) / len(new):.4f}"
            p = "-" if comparison.p is None else f"{comparison.p:.2g}"
            difference = f"{comparison.difference:+.4f} [{comparison.low:+.4f}, {comparison.high:+.4f}]"
            print(f"| {dataset} | {len(both)} | {changed} | {name} | {means} | {difference} | {p} |")


if __name__ == "__main__":
    main()
