"""Adapt the batch norm of trained models to the images of another hospital, one task per model."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from lungseg import storage
from lungseg.cluster.connection import cluster_total, connect
from lungseg.cluster.resources import own_device, require_cpus
from lungseg.cluster.shared_storage import require_shared_storage
from lungseg.config import AdaptSettings
from lungseg.config.options import require_options
from lungseg.dataset.catalog import PreparedDataset, find_datasets, list_unfinished, open_dataset
from lungseg.dataset.sample_reader import SampleReader
from lungseg.errors import InputError, LungsegError, SettingsError, TaskResult
from lungseg.job_end import command, end_job
from lungseg.model import checkpoint, sources
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.checkpoint_classes import stored_thresholds
from lungseg.plurals import counted
from lungseg.progress import ProgressLine

logger = logging.getLogger(__name__)

_MIN_IMAGES = 8  # the statistics of fewer images are too noisy


def run(settings: AdaptSettings) -> None:
    """Adapt every model of --checkpoint and write it as a checkpoint; reproducible.

    Raises:
        LungsegError: a model or the data cannot be used, they were prepared differently, or the cluster is too small.

    """
    require_options(
        {
            "--checkpoint FOLDER (a finished run or study)": settings.checkpoint,
            "--data FOLDER (prepared images)": settings.data,
        }
    )
    models = _models(settings)
    data = [open_dataset(folder) for folder in find_datasets([storage.resolve(path) for path in settings.data])]
    images = min(settings.max_images, sum(dataset.index.num_rows for dataset in data))
    _require_same_preparation(models, data, images)
    out = storage.resolve(settings.out)
    _require_outside_data(out, data)
    inputs = {"data": [dataset.digest for dataset in data], "images": images, "batch_size": settings.batch_size}
    _require_free_folders(out, models, inputs)
    connect()
    require_cpus(1)
    require_shared_storage(out, read=[storage.join(dataset.folder, "dataset.json") for dataset in data])
    task: Any = ray.remote(_adapt).options(num_returns="streaming", num_cpus=1, num_gpus=min(1, cluster_total("GPU")))
    folders = [dataset.folder for dataset in data]
    custom_network = settings.model.custom
    streams = [
        task.remote(model.folder, folders, storage.join(out, name), inputs, custom_network)
        for name, model in models.items()
    ]
    line = ProgressLine(logger)
    for number, (name, stream) in enumerate(zip(models, streams, strict=True), start=1):
        for result in stream:
            done = ray.get(result).unwrap()
            line.update(f"{name}, {number} of {len(models)}: adapted to {done} of {counted(images, 'image')}")
    names = ", ".join(dataset.name for dataset in data)
    sizes = counted(len(models), "model"), counted(images, "image")
    logger.info("adapted %s to %s of %s: pass --checkpoint %s/*", *sizes, names, out)
    skipped = sum(len(list_unfinished(storage.resolve(path))) for path in settings.data)
    infer = f"{command('infer', 'archive', '--archive', 'FOLDER', '--checkpoint', out)}/*"
    end_job({"skipped_datasets": skipped}, settings.strict, infer)


def _models(settings: AdaptSettings) -> dict[str, Checkpoint]:
    """Return the models by run name.

    Raises:
        LungsegError: a model cannot be used, or two runs have the same name.

    """
    models = [model for name in settings.checkpoint for model in checkpoint.find_all(sources.resolve(name))]
    repeated = [name for name, count in Counter(model.config["run"] for model in models).items() if count > 1]
    if repeated:
        raise SettingsError(f"--checkpoint: two runs named {repeated[0]}: adapt them in two commands, to two --out")
    checkpoint.require_custom_code(models, settings.model.custom)
    for model in models:
        checkpoint.require_tensors(model)
        if "adapted_to" in model.config:
            raise InputError(f"{model.folder} is adapted already: pass the trained run that it came from")
    return {str(model.config["run"]): model for model in models}


def _require_same_preparation(models: dict[str, Checkpoint], data: Sequence[PreparedDataset], images: int) -> None:
    """Check that the images are prepared like the training images, and that there are enough.

    Raises:
        InputError: they differ, or there are too few.

    """
    ignored = {"classes": ("lung",)}  # masks are not read
    for model in models.values():
        expected = model.preprocess.model_copy(update=ignored)
        for dataset in data:
            differences = dataset.preprocess.model_copy(update=ignored).differences(expected)
            if differences:
                raise InputError(
                    f"{dataset.folder} was not prepared like the training images of {model.folder} ({differences}): "
                    "prepare the images with the model's settings"
                )
    if images < _MIN_IMAGES:
        raise InputError(
            f"{data[0].folder}: {counted(images, 'image')}, at least {_MIN_IMAGES} are needed: prepare more"
        )


def _require_outside_data(out: str, data: Sequence[PreparedDataset]) -> None:
    """Check that models are not written into a dataset.

    Raises:
        SettingsError: --out is a dataset's folder, or is inside it.

    """
    for dataset in data:
        if storage.is_inside(out, dataset.folder):
            raise SettingsError(f"--out {out} is inside the dataset {dataset.folder}: pass a folder outside of it")


def _require_free_folders(out: str, models: dict[str, Checkpoint], inputs: dict[str, Any]) -> None:
    """Check that no trained run is overwritten, and that every model in `out` has the same inputs.

    Raises:
        InputError: a trained run, or one adapted to other inputs, is stored there.

    """
    for folder in storage.list_folders(out):
        saved = checkpoint.latest(storage.join(folder, "checkpoint"))
        if storage.exists(storage.join(folder, "run.json")) or (saved and "adapted_to" not in saved.config):
            raise InputError(f"{folder} holds a trained run, which would be overwritten: pass another --out")
        if saved is None:
            continue
        recorded, model = saved.config["adapted_to"], models.get(storage.name_of(folder))
        if recorded != {**inputs, "model": model.digest if model else recorded.get("model")}:
            raise InputError(
                f"{folder} was adapted to other images or settings, or from another model: pass another --out"
            )


def _adapt(
    source: str, folders: Sequence[str], out: str, inputs: dict[str, Any], custom_network: str
) -> Iterator[TaskResult]:
    """Adapt one model in a task: yield the number of images processed so far, or the error that ended it."""
    try:
        for images in _adapt_model(
            checkpoint.verify(source), [open_dataset(f) for f in folders], out, inputs, custom_network
        ):
            yield TaskResult(images)
    except LungsegError as error:
        yield TaskResult(error=error)


def _adapt_model(
    source: Checkpoint, data: Sequence[PreparedDataset], out: str, inputs: dict[str, Any], custom_network: str
) -> Iterator[int]:
    import torch

    from lungseg.model import checkpoint_io
    from lungseg.model.adabn import adapt_batch_norm

    reader = SampleReader(data, with_masks=False)
    batches = select_batches(len(reader.rows), inputs["images"], inputs["batch_size"])
    device = torch.device(own_device())
    model = checkpoint_io.load_model(source, custom_network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    yield from adapt_batch_norm(model, ([reader.read(int(position)).image for position in batch] for batch in batches))
    left_out = ("digests", "model_format", "trained_on_digests")  # of the model that is adapted, and its format
    config: dict[str, Any] = {name: value for name, value in source.config.items() if name not in left_out}
    config["settings"] = {**config["settings"], "threshold": checkpoint.stored_threshold(source)}
    if len(source.preprocess.classes) > 1:
        config["thresholds"] = stored_thresholds(source)
    config["adapted_to"] = {**inputs, "model": source.digest}
    trained_on = storage.table_bytes(checkpoint.trained_on_table(source))
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    checkpoint_io.save(storage.join(out, "checkpoint"), checkpoint_io.Snapshot(tensors, {}, config, trained_on))


def select_batches(rows: int, images: int, batch_size: int) -> list[NDArray[np.int64]]:
    """Select images evenly from an index, and split them into batches of batch_size or slightly more.

    Shuffled, because batches from a single hospital or scanner would leave the variance between them out.
    """
    selected = np.linspace(0, rows - 1, images).round().astype(np.int64)
    return np.array_split(np.random.default_rng(0).permutation(selected), max(1, images // batch_size))
