"""Time each stage of the training data path on one core, in CPU time, and state what 12 cores can load.

    python tests/benchmark_loader.py --data data/512

CPU time of one thread, as other work on the machine changes it less than wall time. Each round measures every stage
once, and the table shows the median of the rounds.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median

import cv2
import numpy as np

from lungseg.config import AugmentSettings
from lungseg.config.recipes import TRAIN
from lungseg.dataset import catalog, shard_cache, shard_format
from lungseg.dataset.sample_reader import SampleReader
from lungseg.schema import Sample
from lungseg.training.augment import augment

_GROUPS = (("rotate_deg", "scale", "shift", "elastic", "flip"), ("gamma", "contrast", "brightness", "jitter"))
_CORES, _OWN_CORES = 12, 1  # of a rank with a GPU; those of the training process itself


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="folder of prepared datasets")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    reader = SampleReader([catalog.open_dataset(folder) for folder in catalog.find_datasets([options.data])])
    chosen = np.linspace(0, len(reader.rows) - 1, min(options.images, len(reader.rows)), dtype=int).tolist()
    samples = [reader.read(position) for position in chosen]
    stages = {**_reading(reader, chosen), **dict(_augmenting(samples)), "collate": lambda: _collate(samples)}
    times = {name: [] for name in stages}  # type: dict[str, list[float]]
    for _ in range(options.rounds):
        for name, run in stages.items():
            start = time.thread_time()
            run()
            times[name].append(1000.0 * (time.thread_time() - start) / len(samples))
    table = {name: median(values) for name, values in times.items()}
    for name, milliseconds in table.items():
        print(f"| {name} | {milliseconds:.2f} |")
    for recipe in ("small", "release"):
        total = table["read"] + table["decode"] + table[f"augment, recipe {recipe}"]
        rate = 1000.0 * (_CORES - _OWN_CORES) / total
        print(f"{recipe}: {total:.2f} ms an image, {_CORES - _OWN_CORES} cores: {rate:.0f} images/s")


def _reading(reader: SampleReader, chosen: list[int]) -> dict[str, Callable[[], object]]:
    sources = [reader.source(position) for position in chosen]
    places = [(source.tar, shard_format.member_ranges(source.row)) for source in sources]
    contents = [shard_cache.read_ranges(*place) for place in places]
    rows = [source.row for source in sources]

    def decode() -> None:
        for row, members in zip(rows, contents, strict=True):
            shard_format.verify_checksums(row, members, "")
            shard_format.decode_sample(members, "")

    return {"read": lambda: [shard_cache.read_ranges(*place) for place in places], "decode": decode}


def _augmenting(samples: list[Sample]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the augmentation of two recipes, then each kind of `release` on its own, always applied."""

    def all_of(settings: AugmentSettings) -> Callable[[], object]:
        return lambda: [augment(s.image, s.masks, settings, (0, 1, s.image_id)) for s in samples]  # type: ignore[arg-type]

    for recipe in ("small", "release"):
        yield f"augment, recipe {recipe}", all_of(TRAIN[recipe][1].augment)  # type: ignore[attr-defined]
    strong = TRAIN["release"][1].augment.model_dump()  # type: ignore[attr-defined]
    alone = [(name,) for name in ("opacity", "gas", "collimate", "shadow", "blur", "noise")]
    for names in (*_GROUPS, *alone):
        values = {name: 1.0 if name in ("opacity", "gas", "collimate") else strong[name] for name in names}
        yield f"{', '.join(names)} alone", all_of(AugmentSettings(**values))


def _collate(samples: list[Sample]) -> None:
    for start in range(0, len(samples), 16):
        np.stack([sample.image for sample in samples[start : start + 16]])
        np.stack([sample.masks for sample in samples[start : start + 16] if sample.masks is not None])


if __name__ == "__main__":
    main()
