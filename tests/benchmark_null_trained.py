"""Train equal models many times and count how often a comparison of three seeds with three others calls them different.

One dataset at 64 px, five folds, each trained with many seeds by the code that trains a study's runs, in this process.
Random orders of the seeds give 20 comparisons of three seeds with three others, all with the same settings: a test at
the level of 5 % should find a difference in about one. Three more seeds train half of the epochs: this difference
should be found. The table counts p < 0.05: "over patients" is the signed-rank test that one training on a side allows,
"over patients and trainings" the test of several seeds. The command can be stopped and started again; finished
trainings are kept.

    python tests/benchmark_null_trained.py --data ~/cxr/montgomery --seeds 12
"""

import argparse
import itertools
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config import (
    LoaderSettings,
    ModelSettings,
    OptimSettings,
    PreprocessSettings,
    TrainSettings,
    WandbSettings,
)
from lungseg.dataset import catalog
from lungseg.ingest import record_checks, sources
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.storage.table_formats import TEST_TABLE
from lungseg.study import study_comparison, study_plan
from lungseg.study.tested_images import study_rows
from lungseg.training import run_loop, run_state
from lungseg.training.run import Run
from lungseg.training.study_data import open_training_data

EPOCHS, SEEDS, HALF_SEEDS = 6, 24, 3
GROUP, COMPARISONS = 3, 20

Pair = tuple[list[Row], list[Row]]


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of an archive with lung masks")
    parser.add_argument("--out", default="runs/null", help="folder of the prepared data and the trainings")
    parser.add_argument("--encoder", default="tu-test_efficientnet")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--comparisons", type=int, default=COMPARISONS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(options.out)
    full = list(_train_all(_prepare(options.data, out), out, options.encoder, EPOCHS, range(options.seeds)))
    half = list(
        _train_all(_prepare(options.data, out), out, options.encoder, EPOCHS // 2, range(100, 100 + HALF_SEEDS))
    )
    equal = list(itertools.islice(_equal_pairs(full), options.comparisons))
    single = [(_of(first, _seeds(first)[:1]), _of(second, _seeds(second)[:1])) for first, second in equal]
    groups = [_of(full, seeds) for seeds in zip(*[iter(_seeds(full))] * GROUP, strict=False)]
    columns = ("comparison", "comparisons", "largest difference", "over patients", "over patients and trainings")
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|")
    print(_row("one seed with one other, same settings", single))
    print(_row("three seeds with three others, same settings", equal))
    print(_row("three seeds with three of half the epochs", [(group, half) for group in groups]))


def _row(title: str, pairs: Sequence[Pair]) -> str:
    """Compare each pair with its seeds, and as if each side were one training."""
    compared = [study_comparison.compare(first, "", second).pairs[0].paired for first, second in pairs]
    merged = [
        study_comparison.compare(_one_seed(first), "", _one_seed(second)).pairs[0].paired for first, second in pairs
    ]
    counts = [sum(paired.p is not None and paired.p < 0.05 for paired in column) for column in (merged, compared)]
    with_trainings = str(counts[1]) if compared[0].basis != "patients" else "-"
    largest = max(abs(paired.difference) for paired in compared)
    return f"| {title} | {len(pairs)} | {largest:.4f} | {counts[0]} | {with_trainings} |"


def _equal_pairs(rows: Sequence[Row]) -> Iterator[Pair]:
    """Yield pairs of disjoint groups of seeds, from one random order of the seeds after the other."""
    for number in itertools.count():
        order = np.random.default_rng(number).permutation(_seeds(rows)).tolist()
        for start in range(0, len(order) - 2 * GROUP + 1, 2 * GROUP):
            yield _of(rows, order[start : start + GROUP]), _of(rows, order[start + GROUP : start + 2 * GROUP])


def _seeds(rows: Sequence[Row]) -> list[int]:
    return sorted({row["seed"] for row in rows})


def _of(rows: Sequence[Row], seeds: Sequence[int]) -> list[Row]:
    return [row for row in rows if row["seed"] in seeds]


def _one_seed(rows: Sequence[Row]) -> list[Row]:
    return [{**row, "seed": 0} for row in rows]


def _prepare(archive: str, out: Path) -> tuple[str, ...]:
    """Prepare the archive at 64 px once; return the folders of its datasets."""
    if not list((out / "data").glob("*/dataset.json")):
        records = record_checks.reject_duplicate_ids(sources.discover(storage.resolve(archive)))
        preprocess = PreprocessSettings(size=64, histogram="none")
        dataset_writer.write_datasets(plan_shards(records, str(out / "data"), preprocess, images_per_shard=64))
    return tuple(catalog.find_datasets([str(out / "data")]))


def _train_all(data: tuple[str, ...], out: Path, encoder: str, epochs: int, seeds: Sequence[int]) -> Iterator[Row]:
    """Yield the rows of study.parquet of every fold and seed; train those that are missing."""
    settings = TrainSettings(
        seeds=tuple(seeds),
        epochs=epochs,
        model=ModelSettings(encoder=encoder, weights="none"),
        optim=OptimSettings(lr=4e-3, schedule="one-cycle"),
        loader=LoaderSettings(batch_size=16),
        wandb=WandbSettings(mode="disabled"),
    )
    plans = study_plan.plan_runs(settings, open_training_data(data))
    for number, plan in enumerate(plans):
        folder, start = out / f"epochs{epochs}-{plan.name}", time.monotonic()
        if not (folder / "run.json").exists():
            run = Run(study_plan.settings_of_run(settings, plan), plan, data, folder.name, str(folder))
            run_loop.finish(run_state.start(run, torch.device("cpu")), lambda _: None)
            shutil.rmtree(folder / "checkpoint")
            print(f"{folder.name}: {number + 1} of {len(plans)}, {time.monotonic() - start:.1f} s", flush=True)
        tested = storage.read_table(str(folder / "tested.parquet"), expected=TEST_TABLE).to_pylist()
        yield from study_rows(tested, plan.protocol, plan.train_on, plan.fold, plan.seed)


if __name__ == "__main__":
    main()
