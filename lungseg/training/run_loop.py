"""One run of a study as one rank sees it: train, measure, save, resume, test."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lungseg import storage
from lungseg.config import TrainSettings
from lungseg.dataset.duplicates import image_key
from lungseg.dataset.folds import Split, group_rows, split
from lungseg.dataset.sample_reader import SampleReader
from lungseg.errors import SettingsError
from lungseg.model import checkpoint, checkpoint_io
from lungseg.model.network import build_network
from lungseg.schema import SCHEMA, TEST_ROWS, table
from lungseg.training.augment import flips_allowed
from lungseg.training.distributed import broadcast_buffers, rank_and_world_size, wait_for_all_ranks
from lungseg.training.epoch_loop import BatchClock, Measure, evaluate, train_batches
from lungseg.training.evaluation import (
    best_threshold,
    count_at_thresholds,
    mean_metrics,
    mean_metrics_by_dataset,
    measure_at_native_size,
    measure_at_prepared_size,
)
from lungseg.training.loader import Step, evaluation_steps, load_batches, make_augmentation, training_steps
from lungseg.training.run import Progress, Run, ShowProgress
from lungseg.training.study_data import open_training_data, require_enough_images
from lungseg.training.tracking import MetricsLog, WandbMirror
from lungseg.training.train_step import Learner, deterministic_algorithms, learning_rate


@dataclass
class TrainingState:
    """What a rank holds of a run while it trains.

    epoch: epochs that are finished. step: batches over all ranks of the next one that are done. sums: the loss over all
    ranks' images of those, and their number. best: epoch, validation Dice and weights of the best epoch, where one is
    looked for. waited: seconds of this epoch, since this start, that the device waited for data.
    """

    run: Run
    reader: SampleReader
    split: Split
    learner: Learner
    preprocess: dict[str, Any]
    epoch: int = 0
    step: int = 0
    sums: tuple[float, int] = (0.0, 0)
    best: dict[str, Any] | None = None
    trained: bool = False
    waited: float = 0.0


def start(run: Run, device: torch.device) -> TrainingState:
    """Open data, build the network, and go back to the last checkpoint where there is one.

    Raises:
        LungsegError: whatever makes the run impossible; on every rank alike.

    """
    settings = run.settings
    data = open_training_data(run.data)
    reader = SampleReader(data, settings.loader.cache_mib, settings.loader.disk_mib)
    parts = split(reader.rows, run.plan, run.linked)
    require_enough_images(parts, run.name, _ranks(settings)[2], settings.min_batch_size)
    torch.manual_seed(settings.seed)
    if settings.augment.flip and not flips_allowed(data[0].preprocess.classes):
        raise SettingsError(f"--augment.flip {settings.augment.flip}: flipped, {data[0].preprocess.classes} are others")
    learner = Learner(build_network(settings.model), device, settings)
    training = TrainingState(run, reader, parts, learner, data[0].preprocess.model_dump())
    found = checkpoint.latest(storage.join(run.folder, "checkpoint"))
    if found is not None:
        _go_on(training, found)
    return training


def finish(training: TrainingState, show: ShowProgress) -> dict[str, Any]:
    """Train what is left, test, and write run.json; return its content. Every rank calls it."""
    run, first = training.run, rank_and_world_size()[0] == 0
    log = MetricsLog(storage.join(run.folder, "metrics.jsonl"), training.epoch)
    tracked = run.settings.wandb if first else run.settings.wandb.model_copy(update={"mode": "disabled"})
    with (
        deterministic_algorithms(run.settings.compute.deterministic),
        WandbMirror(tracked, run.settings.study, run.name, run.folder, run.settings.model_dump()) as mirror,
    ):
        while not training.trained:
            row = _one_epoch(training, show)
            if first:
                log.add(row)
                mirror.log(row)
            _save(training)
        summary = _test(training, show)
        mirror.summarise(summary)
    return summary


def _one_epoch(training: TrainingState, show: ShowProgress) -> dict[str, Any]:
    """Train an epoch, or what is left of it; measure; return its line of metrics.jsonl."""
    settings, began = training.run.settings, time.monotonic()
    epoch, trained = training.epoch, len(training.split.train)
    steps = _steps(training)
    behind, total = training.step, steps[-1].batch_index + 1
    while training.step < total:
        _some_batches(training, steps, show)
        if training.step < total:
            _save(training)
    broadcast_buffers(training.learner.eval_model)
    took = time.monotonic() - began
    kind, watched = (
        ("validation", training.split.validation) if settings.validates else ("held_out", training.split.held_out)
    )
    rows = _measure(training, watched, measure_at_prepared_size(settings.threshold))
    figures = mean_metrics(rows)
    row: dict[str, Any] = {
        "run": training.run.name,
        "epoch": epoch + 1,
        "loss": training.sums[0] / training.sums[1],
        **{f"{kind}_{name}": value for name, value in figures.items()},
        f"{kind}_images": len(rows),
        "lr": _rates(training, steps)[-1],
        "train_s": took,
        "device_wait_share": training.waited / took,
        "images_per_second": trained * (1 - behind / total) / took,
        "epoch_s": time.monotonic() - began,
    }
    training.epoch, training.step, training.sums, training.waited = epoch + 1, 0, (0.0, 0), 0.0
    _judge(training, figures["dice"])
    note = f"loss {row['loss']:.3f}, {kind} Dice {figures['dice']:.4f}, {row['images_per_second']:.0f} images/s"
    show(Progress(training.epoch, total, total, row["loss"], note.replace("_", "-")))
    return row


def _judge(training: TrainingState, dice: float) -> None:
    """Keep the best epoch's weights where early stopping is on; say when training ends."""
    settings = training.run.settings
    training.trained = training.epoch >= settings.epochs
    if not settings.patience:
        return
    if training.best is None or dice > training.best["dice"]:
        training.best = {"epoch": training.epoch, "dice": dice, "weights": training.learner.weights()}
    training.trained |= training.epoch - training.best["epoch"] >= settings.patience
    if training.trained:
        training.learner.eval_model.load_state_dict(training.best["weights"])


def _steps(training: TrainingState) -> list[Step]:
    """Deal this rank its batches of the epoch, as positions of index rows."""
    settings, train = training.run.settings, training.split.train
    key = (settings.seed, training.epoch)
    dealt = training_steps(
        len(train),
        settings.loader.batch_size,
        _ranks(settings),
        key,
        settings.min_batch_size,
        settings.optim.accumulate_steps,
    )
    return [replace(step, positions=tuple(train[i] for i in step.positions)) for step in dealt]


def _rates(training: TrainingState, steps: Sequence[Step]) -> list[float]:
    """Learning rate of each batch of the epoch."""
    settings, is_last_in_step = training.run.settings, sum(step.is_last_in_step for step in steps)
    before = accumulate((step.is_last_in_step for step in steps[:-1]), initial=training.epoch * is_last_in_step)
    return [learning_rate(number, is_last_in_step * settings.epochs, settings.optim) for number in before]


def _ranks(settings: TrainSettings) -> tuple[int, int, int]:
    """Rank, world, and the ranks that the run was planned with: a lost one may leave fewer."""
    rank, world = rank_and_world_size()
    return rank, world, max(world, settings.planned_world_size)


def _some_batches(training: TrainingState, steps: Sequence[Step], show: ShowProgress) -> None:
    """Learn from the epoch's next batches, up to where a checkpoint is due."""
    settings, total = training.run.settings, steps[-1].batch_index + 1
    each = settings.save_steps * settings.optim.accumulate_steps
    due = min(total, (training.step // each + 1) * each)
    chosen = [i for i, step in enumerate(steps) if training.step <= step.batch_index < due]
    rates = _rates(training, steps)
    # Dropout draws from torch's own state: a function of epoch, batch and seat, so that what is repeated is the same.
    keys = [(settings.seed, training.epoch, steps[i].batch_index, steps[i].planned_rank) for i in chosen]

    clock = BatchClock()

    def batch_done(count: int, loss: float) -> None:
        number = steps[chosen[count - 1]].batch_index + 1
        rate = (number - training.step) * len(training.split.train) / total / clock.seconds
        show(Progress(training.epoch + 1, number, total, loss, "", rate, clock.waited / clock.seconds))

    change = make_augmentation(settings.augment, settings.seed, training.epoch)
    loss, images = train_batches(
        training.learner,
        clock.waiting(
            load_batches(training.reader, [steps[i] for i in chosen], settings.loader.reader_threads, change)
        ),
        [rates[i] for i in chosen],
        [int(np.random.SeedSequence(key).generate_state(1)[0]) for key in keys],
        batch_done,
    )
    training.sums = (training.sums[0] + loss, training.sums[1] + images)
    training.step, training.waited = due, training.waited + clock.waited


def _measure(training: TrainingState, positions: Sequence[int], measure: Measure) -> list[dict[str, Any]]:
    """Measure the model on these samples, each once over all ranks."""
    settings = training.run.settings.loader
    dealt = evaluation_steps(len(positions), settings.batch_size, rank_and_world_size())
    steps = [replace(step, positions=tuple(positions[i] for i in step.positions)) for step in dealt]
    read = load_batches(training.reader, steps, settings.reader_threads)
    return evaluate(training.learner.eval_model, read, measure, settings.reader_threads)


def _test(training: TrainingState, show: ShowProgress) -> dict[str, Any]:
    """Test the trained model on the held-out fold and on the other data sets; nothing was chosen by them."""
    run, parts = training.run, training.split
    show(Progress(training.epoch, 0, 0, 0.0, "testing"))
    threshold = run.settings.threshold
    if run.settings.choose_threshold:
        threshold = best_threshold(_measure(training, parts.validation, count_at_thresholds))
    rows = []
    groups = dict(zip(map(image_key, training.reader.rows), group_rows(training.reader.rows, run.linked), strict=True))
    for role, positions in (("held-out", parts.held_out), ("cross", parts.cross)):
        measured = _measure(training, positions, measure_at_native_size(threshold))
        rows += [{**row, "run": run.name, "role": role, "group": groups[image_key(row)]} for row in measured]
    summary = {
        "run": run.name,
        "protocol": run.plan.protocol,
        "train_on": list(run.plan.train_on),
        "fold": run.plan.fold,
        "folds": run.plan.folds,
        "epochs": training.epoch,
        "best_epoch": training.best["epoch"] if training.best else training.epoch,
        "trained_images": len(parts.train),
        "validation_images": len(parts.validation),
        "input": f"{training.preprocess['size']} px",
        "resolution": "native size",
        "threshold": threshold,
        "threshold_from": "validation fold" if run.settings.choose_threshold else "settings",
        "aggregation": "mean over images",
        "tested": mean_metrics_by_dataset(rows),
        "settings": run.settings.model_dump(),
    }
    if rank_and_world_size()[0] == 0:
        storage.write_table(storage.join(run.folder, "tested.parquet"), table(rows, TEST_ROWS))
        storage.write_json(storage.join(run.folder, "run.json"), summary)
    wait_for_all_ranks()
    return summary


def _save(training: TrainingState) -> None:
    """Write a checkpoint from rank 0; every rank calls it."""
    run, rows = training.run, training.reader.rows
    if rank_and_world_size()[0] == 0:
        learnt = [rows[i] for i in (*training.split.train, *training.split.validation)]
        names = ("image_id", "dataset", "pixel_digest")
        schema = pa.schema([(name, pa.string()) for name in names], metadata={"lungseg.schema": str(SCHEMA)})
        config = {
            "run": run.name,
            "epoch": training.epoch,
            "step": training.step,
            "epochs": run.settings.epochs,
            "trained": training.trained,
            "train_on": list(run.plan.train_on),
            "fold": run.plan.fold,
            "preprocess": training.preprocess,
            "compute_mode": {**training.learner.compute_mode, "threads": torch.get_num_threads()},
            "settings": run.settings.model_dump(),
        }
        state = {"learner": training.learner.state(), "sums": training.sums, "best": training.best}
        snapshot = checkpoint_io.Snapshot(training.learner.weights(), state, config, table(learnt, schema))
        checkpoint_io.save(storage.join(run.folder, "checkpoint"), snapshot)
    wait_for_all_ranks()


def _go_on(training: TrainingState, found: checkpoint.Checkpoint) -> None:
    """Continue from a checkpoint, in the way that it was made.

    Raises:
        SettingsError: it was made on another kind of device or in another precision, or adapted since.

    """
    if "adapted_to" in found.config:
        raise SettingsError(f"{found.folder} was adapted and cannot be trained on: pass another --study or --out")
    before, now = found.config["compute_mode"], training.learner.compute_mode
    if any(before[name] != now[name] for name in now):
        raise SettingsError(
            f"{training.run.name} began on {before['device']} in {before['precision']}, and would go on on "
            f"{now['device']} in {now['precision']}: wait for the device that it began on, or say --device and "
            "--compute.precision as it was; or train it anew under another --study"
        )
    torch.set_num_threads(before["threads"])  # how many sum up on a CPU changes the last bits
    state = checkpoint_io.load_state(found)
    training.learner.load(checkpoint_io.load_weights(found), state["learner"])
    training.epoch, training.step = found.epoch, int(found.config["step"])
    training.sums, training.best = tuple(state["sums"]), state["best"]
    training.trained = bool(found.config["trained"])
