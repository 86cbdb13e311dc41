"""The epochs of a run on one rank: train, evaluate, save, and test at the end."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from lungseg import storage
from lungseg.arrays import Row
from lungseg.model.step_trace import traced
from lungseg.training import balanced_epochs
from lungseg.training.batch_clock import BatchClock
from lungseg.training.device_memory import explained_memory_errors, peak_mib, reset_peak
from lungseg.training.distributed import broadcast_buffers, on_first_rank, rank_and_world_size
from lungseg.training.epoch_loop import TrainOnBatch, train_batches
from lungseg.training.evaluation import mean_metrics, measure_at_prepared_size
from lungseg.training.loader import Batch, Step, load_batches, plan_epoch
from lungseg.training.run import Progress, ShowProgress
from lungseg.training.run_evaluation import measure_curve, measure_samples, run_final_test, thresholds_of
from lungseg.training.run_state import TrainingState, loader_pool, planned_ranks, save
from lungseg.training.save_timer import SaveTimer
from lungseg.training.tracking import MetricsLog, WandbMirror
from lungseg.training.train_step import deterministic_algorithms, learning_rate, peak_learning_rate
from lungseg.training.transform import EpochTransform, make_transform


def finish(training: TrainingState, show: ShowProgress) -> Row:
    """Train the remaining epochs, test, and return the content of run.json; every rank calls it."""
    run, is_first_rank = training.run, rank_and_world_size()[0] == 0
    log = MetricsLog(storage.join(run.folder, "metrics.jsonl"), training.epoch)
    wandb = run.settings.wandb if is_first_rank else run.settings.wandb.model_copy(update={"mode": "disabled"})
    with (
        explained_memory_errors(run.settings, run.name),
        deterministic_algorithms(run.settings.compute.deterministic),
        training.writer,
        WandbMirror(wandb, run.settings.study, run.name, run.folder, run.settings.model_dump()) as mirror,
        loader_pool(training),
    ):
        while not training.trained:
            row = _train_epoch(training, show)
            if is_first_rank:
                log.add(row)
                mirror.log_epoch(row)
            save(training)
        training.writer.wait()
        show(Progress(training.epoch, 0, 0, 0.0, "testing"))
        summary = run_final_test(training)
        mirror.set_summary(summary)
    return summary


def _train_epoch(training: TrainingState, show: ShowProgress) -> Row:
    """Train the rest of an epoch and evaluate; return its line of metrics.jsonl."""
    settings, device, start = training.run.settings, training.learner.device, time.monotonic()
    reset_peak(device)
    steps = _steps(training)
    first_batch, total = training.step, steps[-1].batch_index + 1
    while training.step < total:
        _train_until_checkpoint(training, steps, show)
        if training.step < total:
            save(training)
    broadcast_buffers(training.learner.eval_model)
    train_s = time.monotonic() - start
    subset = "validation" if settings.validates else "held_out"
    positions = getattr(training.split, subset)
    rows = measure_samples(training, positions, measure_at_prepared_size(thresholds_of(training)))
    metrics = on_first_rank(lambda: mean_metrics(rows) if rows else {})
    curve = measure_curve(training)
    row: Row = {
        "run": training.run.name,
        "epoch": training.epoch + 1,
        "loss": training.sums[0] / training.sums[1],
        **{f"{subset}_{name}": value for name, value in metrics.items()},
        f"{subset}_images": len(positions),
        **curve,
        "lr": _learning_rates(training, steps)[-1],
        "train_s": train_s,
        "device_wait_share": training.waited / train_s,
        "images_per_second": (rate := training.images_per_epoch * (1 - first_batch / total) / train_s),
        "rank_images_per_second": rate / rank_and_world_size()[1],
        **({"peak_device_mib": peak} if (peak := peak_mib(device)) else {}),
        "epoch_s": time.monotonic() - start,
    }
    training.epoch, training.step, training.sums, training.waited = training.epoch + 1, 0, (0.0, 0), 0.0
    _update_best(training, metrics.get("dice", 0.0))
    dice = f"{subset.replace('_', '-')} Dice {_dice_text(metrics)}, " if metrics else ""
    note = f"loss {row['loss']:.3f}, {dice}{row['images_per_second']:.1f} images/s"
    note += "".join(
        f", {key.replace('_dice', ' Dice').replace('_', ' ')} {value:.4f}"
        for key, value in curve.items()
        if "_dice" in key
    )
    show(Progress(training.epoch, total, total, row["loss"], note, metrics=row))
    return row


def _dice_text(metrics: Row) -> str:
    """Format the mean Dice, and that of each class if there are several."""
    classes = [f"{name.removeprefix('dice_')} {value:.4f}" for name, value in metrics.items() if name[:5] == "dice_"]
    return f"{metrics['dice']:.4f}" + (f" ({', '.join(classes)})" if classes else "")


def _update_best(training: TrainingState, dice: float) -> None:
    """Set `trained` at the last epoch; with early stopping, keep the best epoch's weights and restore them."""
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
    """Return this rank's batches of the epoch, as positions in the training images."""
    settings, key = training.run.settings, (training.run.random_seed, training.epoch)
    ranks = planned_ranks(settings)
    if not settings.balance_datasets:
        return plan_epoch(settings, len(training.split.train), ranks, key)
    drawn = balanced_epochs.draw(balanced_epochs.datasets_of(training.index.rows, training.split.train), key)
    steps = plan_epoch(settings, len(drawn), ranks, key)
    return [replace(step, positions=tuple(drawn[list(step.positions)].tolist())) for step in steps]


def _learning_rates(training: TrainingState, steps: Sequence[Step]) -> list[float]:
    """Return the learning rate of each batch of the epoch. Each image size has a schedule of its own."""
    settings, updates = training.run.settings, sum(step.is_last_in_step for step in steps)
    halves = settings.half_size_epochs
    first, end = (0, halves) if training.epoch < halves else (halves, settings.epochs)
    earlier = accumulate((step.is_last_in_step for step in steps[:-1]), initial=(training.epoch - first) * updates)
    total, peak = (end - first) * updates, peak_learning_rate(settings)
    return [learning_rate(update, total, settings.optim, peak) for update in earlier]


def _train_until_checkpoint(training: TrainingState, steps: Sequence[Step], show: ShowProgress) -> None:
    """Train on the next batches of the epoch, until a checkpoint is due or the epoch ends."""
    settings, total = training.run.settings, steps[-1].batch_index + 1
    interval = settings.save_steps * settings.optim.accumulate_steps
    end = min(total, (training.step // interval + 1) * interval)
    selected = [i for i, step in enumerate(steps) if training.step <= step.batch_index < end]
    rates, device = _learning_rates(training, steps), training.learner.device
    clock, timer = BatchClock(device), SaveTimer(settings.save_minutes, lambda: training.writer.seconds)

    def report_loss(count: int, loss: float) -> None:
        done = steps[selected[count - 1]].batch_index + 1
        images = (done - training.step) * training.images_per_epoch / total
        shares = images / clock.seconds, clock.waited / clock.seconds
        show(Progress(training.epoch + 1, done, total, loss, "", *shares, peak_mib(device)))

    batches = [_in_reader(training, steps[i]) for i in selected]
    loss, images = train_batches(
        _train_on_batch(training, len(selected)),
        timer.limit(clock.timed(_load_augmented(training, batches))),
        timer.match(rates[i] for i in selected),
        timer.match(_dropout_seed(training, steps[i]) for i in selected),
        report_loss,
    )
    if timer.batches < len(selected):
        end = steps[selected[timer.batches - 1]].batch_index + 1
    training.sums = (training.sums[0] + loss, training.sums[1] + images)
    training.step, training.waited = end, training.waited + clock.waited


def _train_on_batch(training: TrainingState, batches: int) -> TrainOnBatch:
    """Return the learner, which records some of its next batches if --profile asks and this start has not yet."""
    run, learner = training.run, training.learner
    if not run.settings.profile or training.traced:
        return learner
    training.traced = True
    path = storage.join(run.folder, "profile", f"rank-{rank_and_world_size()[0]}.json")
    return traced(learner, batches, path, learner.compute_mode["device"] == "cuda")


def _in_reader(training: TrainingState, step: Step) -> Step:
    """Return a batch as positions in the reader instead of in the training images."""
    return replace(step, positions=tuple(training.split.train[list(step.positions)].tolist()))


def _load_augmented(training: TrainingState, steps: Sequence[Step]) -> Iterator[Batch]:
    """Yield the batches of steps, from the processes of the pool, or else from threads; they are the same."""
    settings, device = training.run.settings, training.learner.device
    halves = training.epoch < settings.half_size_epochs
    transform = EpochTransform(settings.augment, training.run.random_seed, training.epoch, halves, training.classes)
    if training.pool is None:
        return load_batches(training.reader, steps, settings.loader.threads, make_transform(*transform), device)
    return load_batches(training.pool.samples(transform), steps, settings.loader.process_count, device=device)


def _dropout_seed(training: TrainingState, step: Step) -> int:
    """Return a seed that depends on epoch, batch and planned rank only, so that a resumed run repeats it."""
    key = (training.run.random_seed, training.epoch, step.batch_index, step.planned_rank)
    return int(np.random.SeedSequence(key).generate_state(1)[0])
