"""The state of a run on one rank: started, saved as a checkpoint, and resumed from one."""

import contextlib
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lungseg import provenance, storage
from lungseg.config import TrainSettings
from lungseg.dataset.folds import Split, split
from lungseg.dataset.sample_reader import SampleReader
from lungseg.dataset.training_index import TrainingIndex
from lungseg.errors import SettingsError
from lungseg.model import checkpoint, checkpoint_io
from lungseg.model.custom_code import source_digests
from lungseg.model.network import build_network
from lungseg.schema import SCHEMA
from lungseg.training.balanced_epochs import images_per_epoch
from lungseg.training.checkpoint_writer import CheckpointWriter
from lungseg.training.device_memory import explained_memory_errors
from lungseg.training.distillation import DistillingLearner, Teacher, find_teacher
from lungseg.training.distributed import rank_and_world_size
from lungseg.training.gpu_kernels import use_fast_kernels
from lungseg.training.loader_pool import LoaderPool
from lungseg.training.run import Run
from lungseg.training.study_classes import classes_of_run, require_usable_classes
from lungseg.training.study_data import open_run_index, require_enough_images
from lungseg.training.train_step import Learner

_TRAINED_ON = ("image_id", "dataset", "pixel_digest")
_PIECE_ROWS = 1 << 20


@dataclass
class TrainingState:
    """A run in training on one rank.

    epoch: finished epochs. step: global batches done in the current epoch. sums: sum of the losses over the images of
    those batches on all ranks, and the number of images. best: epoch, validation Dice and weights of the best epoch,
    with early stopping. trained: training has ended. waited: seconds of this epoch, since this start, that the device
    waited for data. traced: this start has recorded its steps, as --profile asks. data: digest of each dataset by name.
    pool: processes that load training samples, if any run. preprocess: of the data, with the classes of this run.
    """

    run: Run
    index: TrainingIndex
    reader: SampleReader
    split: Split
    images_per_epoch: int
    learner: Learner
    preprocess: dict[str, Any]
    epoch: int = 0
    step: int = 0
    sums: tuple[float, int] = (0.0, 0)
    best: dict[str, Any] | None = None
    trained: bool = False
    waited: float = 0.0
    traced: bool = False
    data: dict[str, str] = field(default_factory=dict)
    writer: CheckpointWriter = field(default_factory=CheckpointWriter)
    execution: dict[str, Any] = field(default_factory=dict)
    trained_on: bytes = b""
    pool: LoaderPool | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that this run learns, in the order of its masks and of its network."""
        return self.reader.classes


def start(run: Run, device: torch.device) -> TrainingState:
    """Open the data, build the network, and resume from the last checkpoint if there is one.

    Raises:
        LungsegError: the run cannot start; raised on every rank.

    """
    settings = run.settings
    if device.type == "cpu" and settings.compute.threads != "auto":
        torch.set_num_threads(settings.compute.threads)
    index = open_run_index(run)
    data = index.datasets
    classes = classes_of_run(data, run.plan.train_on)
    require_usable_classes(settings, data, classes)
    reader = SampleReader(data, settings.loader.cache_mib, settings.loader.disk_mib, classes=classes)
    own_split = split(index.rows, run.plan)
    images = images_per_epoch(settings, index.rows, own_split.train)
    require_enough_images(images, run.name, planned_ranks(settings)[2], settings.min_images_per_rank)
    torch.manual_seed(run.random_seed)
    execution = use_fast_kernels(settings.compute, device)
    with explained_memory_errors(settings, run.name):
        learner = _make_learner(settings, classes, device)
    preprocess = data[0].preprocess.model_copy(update={"classes": classes})
    training = TrainingState(run, index, reader, own_split, images, learner, preprocess.model_dump())
    training.data = {dataset.name: dataset.digest for dataset in data}
    latest = checkpoint.latest(storage.join(run.folder, "checkpoint"))
    if latest is not None:
        _resume(training, latest)
    training.execution = {**execution, "batch_norm": learner.batch_norm, "test_precision": learner.test_precision}
    _record_start(training, device)
    return training


def _make_learner(settings: TrainSettings, classes: Sequence[str], device: torch.device) -> Learner:
    network = build_network(settings.model, classes=len(classes))
    if not settings.teacher:
        return Learner(network, device, settings)
    return DistillingLearner(network, device, settings, Teacher(find_teacher(settings.teacher), classes, device))


@contextmanager
def loader_pool(training: TrainingState) -> Iterator[None]:
    """Run the processes that load training samples during the block, if the settings ask for some."""
    loader = training.run.settings.loader
    if training.trained or not loader.process_count:
        yield
        return
    pool = LoaderPool(loader.process_count, training.reader, training.preprocess["size"], loader.disk_mib)
    with contextlib.closing(pool):
        training.pool = pool
        yield
        training.pool = None


def _record_start(training: TrainingState, device: torch.device) -> None:
    (rank, world_size), run = rank_and_world_size(), training.run
    if rank == 0:
        details = {**_describe_device(device), "threads": torch.get_num_threads(), "world_size": world_size}
        provenance.record_start(run.folder, {**run.origin, **details, "execution": training.execution})


def _describe_device(device: torch.device) -> dict[str, str | None]:
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    # The instruction set decides how sums are rounded.
    return {"device": f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}


def planned_ranks(settings: TrainSettings) -> tuple[int, int, int]:
    """Return rank, world_size and planned_world_size, which is larger after ranks were lost."""
    rank, world_size = rank_and_world_size()
    return rank, world_size, max(world_size, settings.planned_world_size)


def save(training: TrainingState) -> None:
    """Begin to write a checkpoint from rank 0; `training.writer` does it in a thread. Every rank calls it."""
    if rank_and_world_size()[0] != 0:
        return
    training.writer.wait()
    run, learner = training.run, training.learner
    config = {
        "run": run.name,
        "epoch": training.epoch,
        "step": training.step,
        "epochs": run.settings.epochs,
        "trained": training.trained,
        "train_on": list(run.plan.train_on),
        "fold": run.plan.fold,
        "seed": run.plan.seed,
        "preprocess": training.preprocess,
        "compute_mode": {**learner.compute_mode, "threads": torch.get_num_threads()},
        "settings": run.settings.model_dump(),
        "custom_code": source_digests(run.settings),
    }
    state = {"learner": learner.state(), "sums": training.sums, "best": training.best}
    training.trained_on = training.trained_on or trained_on_bytes(training.index, training.split)
    snapshot = checkpoint_io.Snapshot(learner.weights(), state, config, training.trained_on)
    training.writer.begin(lambda: checkpoint_io.save(storage.join(run.folder, "checkpoint"), snapshot))


def trained_on_bytes(index: TrainingIndex, images: Split) -> bytes:
    """Return a Parquet file of the images that influenced the weights.

    Validation images are among them, because they select the epoch and the threshold. A piece of the rows is in memory
    at a time.
    """
    seen = np.concatenate([images.train, images.validation])
    schema = pa.schema([(name, pa.string()) for name in _TRAINED_ON], {"lungseg.schema": str(SCHEMA)})
    starts = range(0, len(seen), _PIECE_ROWS)
    return storage.pieces_bytes(schema, (index.rows_at(seen[i : i + _PIECE_ROWS], _TRAINED_ON) for i in starts))


def _resume(training: TrainingState, saved: checkpoint.Checkpoint) -> None:
    """Restore the state of a checkpoint.

    Raises:
        SettingsError: it was written on another device type or in another precision, or it was adapted.

    """
    if "adapted_to" in saved.config:
        raise SettingsError(f"{saved.folder} was adapted and cannot be trained on: pass another --study or --out")
    earlier, current = saved.config["compute_mode"], training.learner.compute_mode
    if any(earlier[name] != current[name] for name in current):
        raise SettingsError(
            f"{training.run.name} was started on {earlier['device']} in {earlier['precision']} and cannot continue on "
            f"{current['device']} in {current['precision']}: wait for that device, or pass the --device and "
            "--compute.precision of the first start, or train again under another --study"
        )
    torch.set_num_threads(earlier["threads"])  # the number of threads changes the last bits of sums on a CPU
    state = checkpoint_io.load_state(saved)
    training.learner.load(checkpoint_io.load_weights(saved), state["learner"])
    training.epoch, training.step = saved.epoch, int(saved.config["step"])
    training.sums, training.best = tuple(state["sums"]), state["best"]
    training.trained = bool(saved.config["trained"])
