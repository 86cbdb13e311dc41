"""Fit trained models to prepared pictures of another hospital, one task a model, and write them as checkpoints."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from lungseg import storage
from lungseg.cluster.connection import cluster_total, connect
from lungseg.cluster.resources import require_cpus
from lungseg.cluster.shared_storage import require_shared_storage
from lungseg.config import AdaptSettings
from lungseg.dataset.catalog import PreparedDataset, find_datasets, open_dataset
from lungseg.dataset.sample_reader import SampleReader
from lungseg.errors import InputError, LungsegError, SettingsError, TaskResult
from lungseg.model import checkpoint
from lungseg.model.checkpoint import Checkpoint
from lungseg.progress import ProgressLine

logger = logging.getLogger(__name__)

_LEAST = 8  # pictures: the statistics of fewer are chance


def run(settings: AdaptSettings) -> None:
    """Adapt every model that is named; the same command makes the same models again.

    Raises:
        LungsegError: a model or the data cannot be used, they were prepared differently, or the cluster is too small.

    """
    if not settings.checkpoint or not settings.data:
        raise SettingsError("pass --checkpoint FOLDER (a finished run) and --data FOLDER (prepared pictures)")
    models = _models(settings)
    data = [open_dataset(folder) for folder in find_datasets([storage.resolve(path) for path in settings.data])]
    images = min(settings.max_images, sum(part.index.num_rows for part in data))
    _require_alike(models, data, images)
    out = storage.resolve(settings.out)
    _require_apart(out, data)
    fitted_to = {"data": [part.digest for part in data], "images": images, "batch_size": settings.batch_size}
    _require_room(out, models, fitted_to)
    connect()
    require_cpus(1)
    require_shared_storage(out, read=[storage.join(part.folder, "dataset.json") for part in data])
    task: Any = ray.remote(_adapt).options(num_returns="streaming", num_cpus=1, num_gpus=min(1, cluster_total("GPU")))
    folders = [part.folder for part in data]
    begun = [task.remote(model.folder, folders, storage.join(out, name), fitted_to) for name, model in models.items()]
    line = ProgressLine(logger)
    for number, (name, said) in enumerate(zip(models, begun, strict=True), start=1):
        for one in said:
            done = ray.get(one).unwrap()
            line.update(f"{name}, {number} of {len(models)}: fitted to {done} of {images} pictures")
    where = ", ".join(part.name for part in data)
    logger.info(
        "%d models fitted to %d pictures of %s, in %s/*: pass them as --checkpoint", len(models), images, where, out
    )


def _models(settings: AdaptSettings) -> dict[str, Checkpoint]:
    """Find the models, each under its run's name.

    Raises:
        LungsegError: one cannot be used, or two runs bear one name.

    """
    found = [one for folder in settings.checkpoint for one in checkpoint.find_all(storage.resolve(folder))]
    models = {str(one.config["run"]): one for one in found}
    twice = [name for name, count in Counter(one.config["run"] for one in found).items() if count > 1]
    if twice:
        raise SettingsError(f"--checkpoint: two runs named {twice[0]}: adapt them in two commands, to two --out")
    for one in found:
        checkpoint.require_tensors(one)
        if "adapted_to" in one.config:
            raise InputError(f"{one.folder} is adapted already: pass the run that it was made from")
    return models


def _require_alike(models: dict[str, Checkpoint], data: Sequence[PreparedDataset], images: int) -> None:
    """Make sure that the pictures are prepared as those that the models learnt from, and enough.

    Raises:
        InputError: they are not.

    """
    for model in models.values():
        for part in data:
            same = {"classes": ("lung",)}  # of masks, which are not looked at
            found, expected = (one.model_copy(update=same) for one in (part.preprocess, model.preprocess))
            unlike = found.differences(expected)
            if unlike:
                raise InputError(
                    f"{part.folder} was prepared unlike what {model.folder} learnt from ({unlike}): prepare the "
                    "pictures as the model's were"
                )
    if images < _LEAST:
        raise InputError(f"{data[0].folder}: {images} pictures, at least {_LEAST} are needed: prepare more")


def _require_apart(out: str, data: Sequence[PreparedDataset]) -> None:
    """Refuse to write models among the pictures.

    Raises:
        SettingsError: --out is a data set's folder, or lies in it.

    """
    for part in data:
        if storage.is_inside(out, part.folder):
            raise SettingsError(f"--out {out} lies in the data set {part.folder}: pass a folder outside of it")


def _require_room(out: str, models: dict[str, Checkpoint], fitted_to: dict[str, Any]) -> None:
    """Make sure that nothing is lost by writing the models, and that all in `out` are of one make.

    Raises:
        InputError: a run that was trained lies there, or one that was adapted otherwise.

    """
    for folder in storage.list_folders(out):
        there = checkpoint.latest(storage.join(folder, "checkpoint"))
        if storage.exists(storage.join(folder, "run.json")) or (there and "adapted_to" not in there.config):
            raise InputError(f"{folder} holds a trained run, which would be lost or mixed up: pass another --out")
        if there is None:
            continue
        adapted, model = there.config["adapted_to"], models.get(storage.name_of(folder))
        if adapted != {**fitted_to, "model": model.digest if model else adapted.get("model")}:
            raise InputError(
                f"{folder} was adapted to other pictures or settings, or from another model: pass another --out"
            )


def _adapt(source: str, folders: Sequence[str], out: str, fitted_to: dict[str, Any]) -> Iterator[TaskResult]:
    """Adapt one model in a task of its own: yield how many images it has seen, or the error that ended it."""
    try:
        for images in _fit(checkpoint.verify(source), [open_dataset(folder) for folder in folders], out, fitted_to):
            yield TaskResult(images)
    except LungsegError as error:
        yield TaskResult(error=error)


def _fit(found: Checkpoint, data: Sequence[PreparedDataset], out: str, fitted_to: dict[str, Any]) -> Iterator[int]:
    import torch

    from lungseg.model import checkpoint_io
    from lungseg.model.adabn import adapt_batch_norm

    reader = SampleReader(data, with_masks=False)
    groups = _batches(len(reader.rows), fitted_to["images"], fitted_to["batch_size"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = checkpoint_io.load_model(found).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    yield from adapt_batch_norm(model, ([reader.read(int(position)).image for position in group] for group in groups))
    config: dict[str, Any] = {name: value for name, value in found.config.items() if name != "digests"}
    config["settings"] = {**config["settings"], "threshold": checkpoint.stored_threshold(found)}
    config["adapted_to"] = {**fitted_to, "model": found.digest}
    learnt = storage.read_table(storage.join(found.folder, "trained_on.parquet"))
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    checkpoint_io.save(storage.join(out, "checkpoint"), checkpoint_io.Snapshot(tensors, {}, config, learnt))


def _batches(rows: int, images: int, batch: int) -> list[NDArray[np.int64]]:
    """Choose images evenly from an index's rows, and deal them to batches of `batch` or little more.

    Shuffled: a batch of one hospital or scanner alone would leave the spread between them out of the variances.
    """
    chosen = np.linspace(0, rows - 1, images).round().astype(np.int64)
    return np.array_split(np.random.default_rng(0).permutation(chosen), max(1, images // batch))
