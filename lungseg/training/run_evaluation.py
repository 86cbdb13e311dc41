"""Evaluation of a run's model: on chosen samples, and the final test."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from lungseg import provenance, storage
from lungseg.arrays import Row
from lungseg.dataset.duplicates import image_key
from lungseg.dataset.folds import GROUP, codes, group_names
from lungseg.dataset.masked_rows import Positions
from lungseg.metrics import segmentation
from lungseg.model.custom_code import source_digests
from lungseg.result_columns import TEST_ROWS
from lungseg.schema import table
from lungseg.training.distributed import on_first_rank, rank_and_world_size
from lungseg.training.epoch_loop import Measure, evaluate
from lungseg.training.evaluation import (
    Thresholds,
    best_thresholds,
    count_at_thresholds,
    mean_metrics,
    mean_metrics_by_dataset,
    measure_at_native_size,
    measure_at_prepared_size,
)
from lungseg.training.loader import evaluation_steps, load_batches
from lungseg.training.method_digest import method_digest
from lungseg.training.run_state import TrainingState


def measure_samples(training: TrainingState, positions: Positions, measure: Measure) -> list[Row]:
    """Measure the model on samples, each once over all ranks; the rows are on rank 0 only."""
    settings = training.run.settings
    loader = settings.loader
    steps = evaluation_steps(len(positions), settings.rank_batch_size, rank_and_world_size())
    steps = [replace(step, positions=tuple(positions[list(step.positions)].tolist())) for step in steps]
    batches = load_batches(training.reader, steps, loader.threads, device=training.learner.device)
    learner = training.learner
    return evaluate(learner.eval_model, batches, measure, loader.threads, learner.test_precision)


def measure_curve(training: TrainingState) -> Row:
    """Return the mean Dice on the held-out fold and on each other dataset in the epochs of --test-every, else {}.

    At prepared size. For curves only: no weight, epoch or threshold is chosen by it. Without a validation fold, the
    held-out fold is measured in every epoch anyway.
    """
    settings, split = training.run.settings, training.split
    if not settings.test_every or (training.epoch + 1) % settings.test_every:
        return {}
    measure = measure_at_prepared_size(thresholds_of(training))
    subsets = {"held_out_dice": split.held_out} if settings.validates else {}
    names, dataset_of = codes(training.index.rows.column("dataset"))
    for code in sorted(set(dataset_of[split.cross].tolist()), key=names.__getitem__):
        subsets[f"cross_dice_{names[code]}"] = split.cross[dataset_of[split.cross] == code]
    rows = {name: measure_samples(training, positions, measure) for name, positions in subsets.items()}
    return on_first_rank(lambda: {name: mean_metrics(measured)["dice"] for name, measured in rows.items() if measured})


def run_final_test(training: TrainingState) -> Row:
    """Test on the held-out fold and the other datasets; write tested.parquet and run.json, and return the latter.

    Neither subset influenced training, the selected epoch or the threshold.
    """
    run, split = training.run, training.split
    thresholds = thresholds_of(training)
    if run.settings.choose_threshold:
        counted = measure_samples(training, split.validation, count_at_thresholds(training.classes))
        thresholds = on_first_rank(lambda: best_thresholds(counted, thresholds_of(training)))
    measured = {
        role: measure_samples(training, positions, measure_at_native_size(thresholds))
        for role, positions in (("held-out", split.held_out), ("cross", split.cross))
    }
    return on_first_rank(lambda: _write_results(training, thresholds, measured))


def thresholds_of(training: TrainingState) -> dict[str, float]:
    """Return the threshold of the settings for each class."""
    return dict.fromkeys(training.classes, training.run.settings.threshold)


def _write_results(training: TrainingState, thresholds: Thresholds, measured: dict[str, list[Row]]) -> Row:
    run = training.run
    groups = _group_of_images(training, np.concatenate([training.split.held_out, training.split.cross]))
    rows = [
        {**row, "run": run.name, "role": role, "group": groups[image_key(row)]}
        for role, role_rows in measured.items()
        for row in role_rows
    ]
    summary = _summary(training, thresholds, rows)
    storage.write_table(storage.join(run.folder, "tested.parquet"), table(rows, TEST_ROWS))
    provenance.record_end(run.folder)
    storage.write_json(storage.join(run.folder, "run.json"), summary)  # last: it says that the run is finished
    return summary


def _group_of_images(training: TrainingState, positions: Positions) -> dict[str, str]:
    """Return the name of the group of each tested image, by `dataset/image_id`."""
    index = training.index
    groups = index.rows.column(GROUP).take(pa.array(positions)).to_numpy()
    images = index.rows_at(positions, ("dataset", "image_id")).to_pylist()
    return dict(zip(map(image_key, images), group_names(index.rows, groups), strict=True))


def _summary(training: TrainingState, thresholds: Thresholds, rows: Sequence[Row]) -> Row:
    run = training.run
    return {
        "run": run.name,
        "protocol": run.plan.protocol,
        "train_on": list(run.plan.train_on),
        "fold": run.plan.fold,
        "folds": run.plan.folds,
        "split_seed": run.plan.split_seed,
        "seed": run.plan.seed,
        "epochs": training.epoch,
        "best_epoch": training.best["epoch"] if training.best else training.epoch,
        "trained_images": len(training.split.train),
        "validation_images": len(training.split.validation),
        "input": f"{training.preprocess['size']} px",
        "resolution": "native size",
        "reference": segmentation.PREPARED_REFERENCE,
        "threshold": next(iter(thresholds.values())) if len(thresholds) == 1 else run.settings.threshold,
        "thresholds": dict(thresholds),
        "threshold_from": "validation fold" if run.settings.choose_threshold else "settings",
        "aggregation": "mean over images",
        "data": training.data,
        "preprocess": training.preprocess,
        "architecture": "custom" if run.settings.model.custom else "DeepLabV3+",
        "optimizer": "AdamW" if run.settings.optim.weight_decay else "Adam",
        "compute_mode": training.learner.compute_mode,
        "execution": training.execution,
        "method": method_digest(run.settings),
        "tested": mean_metrics_by_dataset(rows),
        "settings": run.settings.model_dump(),
        "custom_code": source_digests(run.settings),
    }
