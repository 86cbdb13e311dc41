"""Train equal models many times and count how often a comparison of three seeds with three others calls them different.

One dataset at 64 px, five folds, each trained with 24 seeds by the same code as a study's runs, in this process. Five
random orders of the seeds give 20 comparisons of three seeds with three others, all of the same settings: a test at
the level of 5 % should find a difference in one of them. Six more seeds train half of the epochs: this difference
should be found. The command can be stopped and started again; finished trainings are kept.

    python tests/benchmark_null_trained.py --data ~/cxr/montgomery
"""

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

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
from lungseg.study import study_plan
from lungseg.study.tested_images import study_rows
from lungseg.training import run_loop, run_state
from lungseg.training.run import Run
from lungseg.training.study_data import open_training_data

EPOCHS, SEEDS, HALF_SEEDS, GROUP, ORDERS = 6, 24, 6, 3, 5


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of an archive with lung masks")
    parser.add_argument("--out", default="runs/null", help="folder of the prepared data and the trainings")
    parser.add_argument("--encoder", default="tu-test_efficientnet")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(options.out)
    rows = {
        epochs: list(_train_all(_prepare(options.data, out), out, options.encoder, epochs, seeds))
        for epochs, seeds in ((EPOCHS, range(options.seeds)), (EPOCHS // 2, range(100, 100 + HALF_SEEDS)))
    }
    print(len(rows))


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
        loader=LoaderSettings(batch_size=16, threads=1),
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
        tested = storage.read_table(str(folder / "tested.parquet")).to_pylist()
        yield from study_rows(tested, plan.protocol, plan.train_on, plan.fold, plan.seed)


if __name__ == "__main__":
    main()
