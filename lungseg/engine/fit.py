"""One run of a study as one rank sees it: train, measure, save, resume, test."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from lungseg import storage
from lungseg.config import TrainSettings
from lungseg.data.datasets import PreparedData, open_dataset
from lungseg.data.folds import Link, RunPlan, Split, split
from lungseg.data.loader import augmenting, batches, evaluation_steps, training_steps
from lungseg.data.reader import SampleReader
from lungseg.engine import checkpoint, loop
from lungseg.engine.ranks import data_parallel, gather, rank_and_world, share_buffers, wait_for_all
from lungseg.engine.tracking import MetricsLog, WandbMirror
from lungseg.errors import InputError, SettingsError
from lungseg.model.network import LungNetwork, build
from lungseg.schema import SCHEMA, TEST_ROWS, table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run, as every rank receives it: settings, who trains on whom, the data sets' folders, and its own folder.

    linked: images, as `dataset/image_id`, that the audit found to be one picture or of one patient.
    """

    settings: TrainSettings
    plan: RunPlan
    data: tuple[str, ...]
    name: str
    folder: str
    linked: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Where a run is, for whoever shows it: epochs and steps count from 1; loss is of the last step on rank 0."""

    epoch: int
    step: int
    steps: int
    loss: float
    note: str = ""


Show = Callable[[Progress], None]


@dataclass
class _Training:
    """What a run holds while it trains."""

    run: Run
    reader: SampleReader
    parts: Split
    model: LungNetwork
    optimizer: torch.optim.Optimizer
    preprocess: dict[str, Any]
    epoch: int = 0


def name_run(settings: TrainSettings, plan: RunPlan, data: list[PreparedData]) -> str:
    """Name a run after its plan and a digest of all that shapes its result, so that no other setting resumes it."""
    elsewhere = {"data", "out", "study", "protocols", "only_folds", "wandb", "max_failures", "phantoms"}
    shaping = settings.model_dump(exclude={**dict.fromkeys(elsewhere, True), "loader": {"threads", "cache_mib"}})
    made_of = [SCHEMA, plan.protocol, plan.train_on, plan.fold, shaping]
    return f"{plan.name}-{storage.digest([*made_of, [part.digest for part in data]])[:8]}"


def open_data(folders: tuple[str, ...] | list[str]) -> list[PreparedData]:
    """Open prepared data sets for training: all prepared alike, and of each the samples with a mask.

    Raises:
        InputError: no sample has a mask, two data sets bear one name, or they were prepared differently.

    """
    opened = [open_dataset(folder) for folder in folders]
    data = [kept for part in opened if (kept := _with_masks(part)) is not None]
    if not data:
        images = sum(part.index.num_rows for part in opened)
        raise InputError(
            f"{', '.join(folders)}: none of {images} images has a mask: training needs masks; prepare them too"
        )
    for part in data:
        if part.preprocess.classes != ("lung",):
            raise InputError(
                f"{part.folder}: masks of {', '.join(part.preprocess.classes)}, this version learns lungs alone: "
                "prepare it with --preprocess.classes lung"
            )
        if part.preprocess != data[0].preprocess:
            raise InputError(
                f"{part.folder} and {data[0].folder} were prepared differently: prepare them alike "
                f"(found {part.preprocess!r}, expected {data[0].preprocess!r})"
            )
        if [other.name for other in data].count(part.name) > 1:
            raise InputError(f"{part.folder}: a second data set named {part.name}: prepare it with another --dataset")
    return data


def _with_masks(part: PreparedData) -> PreparedData | None:
    """Keep the samples that can be learnt from, and say how many cannot; None where there is none."""
    having = pc.greater(part.index.column("mask_size"), 0)
    index = part.index.filter(having)
    without = part.index.num_rows - index.num_rows
    if without:
        logger.warning("%s: %d of %d images have no mask and are left out", part.name, without, part.index.num_rows)
    return replace(part, index=index) if index.num_rows else None


def check_split(parts: Split, name: str, workers: int) -> None:
    """Refuse a run in which some rank would train on fewer than two images.

    Raises:
        SettingsError: it would.

    """
    if len(parts.train) < 2 * workers:
        raise SettingsError(
            f"{name}: {len(parts.train)} training images, {2 * workers} needed for {workers} workers: lower --workers"
        )


def start(run: Run, device: torch.device) -> _Training:
    """Open data, build the network, and go back to the last checkpoint where there is one.

    Raises:
        LungsegError: whatever makes the run impossible; on every rank alike.

    """
    data = open_data(run.data)
    reader = SampleReader(data, run.settings.loader.cache_mib)
    parts = split(reader.rows, run.plan, run.linked)
    check_split(parts, run.name, rank_and_world()[1])
    torch.manual_seed(run.settings.seed)
    model = build(run.settings.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optim = run.settings.optim
    optimizer = torch.optim.AdamW(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    training = _Training(run, reader, parts, model, optimizer, data[0].preprocess.model_dump())
    found = checkpoint.latest(storage.join(run.folder, "checkpoint"))
    if found is not None:
        model.load_state_dict(checkpoint.load_model(found).state_dict())
        checkpoint.load_optimizer(found, optimizer)
        training.epoch = found.epoch
    return training


def finish(training: _Training, show: Show) -> dict[str, Any]:
    """Train the epochs that are left, test, and write run.json; return its content. Every rank calls it."""
    run, first = training.run, rank_and_world()[0] == 0
    parallel = data_parallel(training.model, next(training.model.parameters()).device)
    log = MetricsLog(storage.join(run.folder, "metrics.jsonl"), training.epoch)
    tracked = run.settings.wandb if first else run.settings.wandb.model_copy(update={"mode": "disabled"})
    with WandbMirror(tracked, run.settings.study, run.name, run.folder, run.settings.model_dump()) as mirror:
        while training.epoch < run.settings.epochs:
            row = _one_epoch(training, parallel, show)
            if first:
                log.add(row)
                mirror.log(row)
                _save(training)
            wait_for_all()
        summary = _test(training, show)
        mirror.summarise(summary)
    training.reader.close()
    return summary


def _one_epoch(training: _Training, parallel: torch.nn.Module, show: Show) -> dict[str, Any]:
    settings, began = training.run.settings, time.monotonic()
    rank, world = rank_and_world()
    epoch = training.epoch
    key = (settings.seed, epoch)
    steps = training_steps(len(training.parts.train), settings.loader.batch, (rank, world), key)
    # Dropout draws from torch's own state: a function of epoch and rank, so that a resumed epoch repeats itself.
    torch.manual_seed(settings.seed * 1_000_003 + epoch * 1_009 + rank)
    done = 0

    def step_done(loss: float) -> None:
        nonlocal done
        done += 1
        show(Progress(epoch + 1, done, len(steps), loss))

    total = len(steps) * settings.epochs
    rates = [loop.learning_rate(epoch * len(steps) + i, total, settings.optim) for i in range(len(steps))]
    change = augmenting(settings.augment, settings.seed, epoch)
    read = batches(training.reader, _at(training.parts.train, steps), settings.loader.threads, change)
    loss = loop.train_epoch(parallel, read, training.optimizer, settings.loss, rates, step_done)
    share_buffers(training.model)
    trained = time.monotonic()
    rows = _measure(training, training.parts.held_out)
    figures = {f"held_out_{name}": value for name, value in loop.averages(rows).items()}
    training.epoch += 1
    row = {
        "run": training.run.name,
        "epoch": training.epoch,
        "loss": loss,
        **figures,
        "held_out_images": len(rows),
        "lr": rates[-1],
        "train_s": trained - began,
        "images_per_s": len(training.parts.train) / (trained - began),
        "epoch_s": time.monotonic() - began,
    }
    note = f"loss {loss:.3f}, held-out Dice {row['held_out_dice']:.4f}, {row['images_per_s']:.0f} images/s"
    show(Progress(training.epoch, len(steps), len(steps), loss, note))
    return row


def _measure(training: _Training, positions: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure the model on these samples, each once over all ranks."""
    settings = training.run.settings
    steps = evaluation_steps(len(positions), settings.loader.batch, rank_and_world())
    read = batches(training.reader, _at(positions, steps), settings.loader.threads)
    return loop.evaluate(training.model, read, settings.threshold)


def _test(training: _Training, show: Show) -> dict[str, Any]:
    """Test the last epoch's model on the held-out fold and on the other data sets; no epoch was chosen by them."""
    run = training.run
    show(Progress(training.epoch, 0, 0, 0.0, "testing"))
    rows = []
    for role, positions in (("held-out", training.parts.held_out), ("cross", training.parts.cross)):
        rows += [{**row, "run": run.name, "role": role} for row in _measure(training, positions)]
    pairs = sorted({(row["role"], row["dataset"]) for row in rows})
    tested = [
        {"role": role, "dataset": dataset, "images": len(chosen), **loop.averages(chosen)}
        for role, dataset in pairs
        for chosen in [[row for row in rows if (row["role"], row["dataset"]) == (role, dataset)]]
    ]
    summary = {
        "run": run.name,
        "protocol": run.plan.protocol,
        "train_on": list(run.plan.train_on),
        "fold": run.plan.fold,
        "folds": run.plan.folds,
        "epochs": training.epoch,
        "trained_images": len(training.parts.train),
        "resolution": f"{training.preprocess['size']} px",
        "threshold": run.settings.threshold,
        "aggregation": "mean over images",
        "tested": tested,
        "settings": run.settings.model_dump(),
    }
    if rank_and_world()[0] == 0:
        storage.write_table(storage.join(run.folder, "tested.parquet"), table(rows, TEST_ROWS))
        storage.write_json(storage.join(run.folder, "run.json"), summary)
    gather(None)
    return summary


def _save(training: _Training) -> None:
    run, rows = training.run, training.reader.rows
    learnt = [rows[i] for i in training.parts.train]
    names = ("image_id", "dataset", "sha256")
    schema = pa.schema([(name, pa.string()) for name in names], metadata={"lungseg.schema": str(SCHEMA)})
    config = {
        "run": run.name,
        "epoch": training.epoch,
        "epochs": run.settings.epochs,
        "train_on": list(run.plan.train_on),
        "fold": run.plan.fold,
        "preprocess": training.preprocess,
        "settings": run.settings.model_dump(),
    }
    checkpoint.save(
        storage.join(run.folder, "checkpoint"), training.model, training.optimizer, config, table(learnt, schema)
    )


def _at(positions: tuple[int, ...], steps: list[Any]) -> list[Any]:
    """Turn steps over 0..n-1 into steps over these positions."""
    return [type(step)(tuple(positions[i] for i in step.positions), step.global_size) for step in steps]
