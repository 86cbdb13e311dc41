"""Measure the stages of training and inference on this machine. It needs no Ray: one machine is measured."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import torch

from lungseg import storage
from lungseg.bench import inputs
from lungseg.bench.bottleneck import find_bottlenecks
from lungseg.bench.device import choose_device, count_cores, count_devices, describe_machine
from lungseg.bench.inference_stages import image_stages, predict_stage
from lungseg.bench.rank_scaling import measure_ranks, world_sizes
from lungseg.bench.table import print_tables
from lungseg.bench.timing import Stage, StageTimes, measure
from lungseg.bench.training_stages import LOAD, device_stages, loader_stage, sample_stages
from lungseg.config import BenchSettings
from lungseg.config.precision import require_fp16_device
from lungseg.errors import ResourceError
from lungseg.job_end import end_job
from lungseg.pipelines.phantoms import draw_phantoms
from lungseg.plurals import counted
from lungseg.progress import ProgressLine
from lungseg.training.custom_code_check import check_custom_code

logger = logging.getLogger(__name__)

_PHANTOMS = 4  # in each of two styles
_QUICK, _FULL = (5, 50.0), (20, 200.0)  # rounds, and seconds after which no other round begins
_GPU_WARM_UP = 3


@dataclass(frozen=True)
class _Setup:
    """What is measured. size: side of the model's input. is_cached: a training keeps all decoded data in memory."""

    stages: list[Stage]
    size: int
    is_cached: bool


def run(settings: BenchSettings) -> None:
    """Measure every stage in rounds, print the tables and the stages to widen, and write bench.json.

    Raises:
        LungsegError: data, archive or settings cannot be used, or a GPU is asked for and there is none.

    """
    device = choose_device(settings)
    settings = _with_small_batches(settings) if settings.quick and device.type == "cpu" else settings
    require_fp16_device(settings.compute.precision, device.type == "cuda", "--compute.precision")
    threads_before = cv2.getNumThreads()
    cv2.setNumThreads(1)  # so that a stage of one image is that of one core
    try:
        with tempfile.TemporaryDirectory() as folder:
            setup = _set_up(settings, device, folder)
            times = _measure(settings, setup.stages, device)
    finally:
        cv2.setNumThreads(threads_before)
    scaling = {"threads or processes of the loader": _loader_scaling(times)} | _rank_scaling(
        settings, setup.size, device
    )
    _report(settings, setup, times, scaling, device)
    end_job({}, settings.strict)


def _with_small_batches(settings: BenchSettings) -> BenchSettings:
    """Return the settings for CPUs in a hurry, where an image takes as long in a batch of two as in a larger one."""
    loader = settings.loader.model_copy(update={"batch_size": 2, "global_batch_size": 0})
    return settings.model_copy(update={"loader": loader, "batch_size": 2})


def _set_up(settings: BenchSettings, device: torch.device, folder: str) -> _Setup:
    """Open data and images and build the stages; folder: for an untrained model."""
    is_complete = bool(settings.data and settings.archive)
    phantoms = "" if is_complete else draw_phantoms(storage.resolve(settings.out), _PHANTOMS)
    data = inputs.open_data(settings, phantoms)
    loader = settings.loader.for_rank(count_cores() // count_devices(device), device.type == "cuda")
    preprocess, training = data[0].preprocess, settings.training.model_copy(update={"loader": loader})
    check_custom_code(training, preprocess.size)
    opened = inputs.open_images(settings, preprocess, phantoms)
    *before, finish = image_stages(opened, preprocess, inputs.plausible_probability(preprocess.size))
    stages = [
        *sample_stages(data, training),
        *(loader_stage(data, training, workers) for workers in world_sizes(loader.process_count or loader.threads)),
        *device_stages(preprocess.size, training, device),
        *before,
        predict_stage([image for _, image in opened], settings, preprocess, device, folder),
        finish,
    ]
    decoded = 2 * preprocess.size**2 * sum(dataset.index.num_rows for dataset in data)
    is_cached = bool(settings.data) and decoded <= settings.loader.cache_mib << 20
    return _Setup(stages, preprocess.size, is_cached)


def _measure(settings: BenchSettings, stages: Sequence[Stage], device: torch.device) -> list[StageTimes]:
    rounds, seconds = _QUICK if settings.quick else _FULL
    progress = ProgressLine(logger)
    logger.info("measuring %d stages in up to %d rounds on %s", len(stages), rounds, device.type)
    warm_up = _GPU_WARM_UP if device.type == "cuda" else 1
    try:
        return measure(
            stages,
            rounds,
            seconds,
            lambda number: progress.update(f"round {number} of up to {rounds}", number / rounds),
            warm_up,
        )
    finally:
        progress.close()


def _loader_scaling(times: Sequence[StageTimes]) -> list[dict[str, Any]]:
    """Return images per second and speed-up for each number of threads or processes that was measured."""
    loads = [entry for entry in times if entry.stage.name.startswith(LOAD)]
    return [
        {
            "workers": entry.stage.limit_workers,
            "images_per_second": round(1000.0 / entry.best, 3),
            "speedup": round(loads[0].best / entry.best, 3),
        }
        for entry in loads
    ]


def _rank_scaling(settings: BenchSettings, size: int, device: torch.device) -> dict[str, list[dict[str, Any]]]:
    """Return how the training step scales with ranks; {} with one rank."""
    on_gpus, most = device.type == "cuda", settings.workers_per_run
    most = (count_devices(device) if on_gpus else 1) if most == "auto" else most
    if most == 1:
        return {}
    if on_gpus and most > count_devices(device):
        raise ResourceError(
            f"--workers-per-run {most}: this machine has {counted(count_devices(device), 'GPU')}: lower it"
        )
    logger.info("measuring training steps on up to %d ranks, one number of ranks after the other", most)
    return {"ranks of a training step": list(measure_ranks(settings, size, on_gpus, most))}


def _report(
    settings: BenchSettings,
    setup: _Setup,
    times: Sequence[StageTimes],
    scaling: dict[str, list[dict[str, Any]]],
    device: torch.device,
) -> None:
    """Print the tables and the stages to widen, and write bench.json."""
    machine = describe_machine(device)
    cores_per_device = machine["cores"] / machine["devices"]
    bottlenecks = find_bottlenecks(times, device.type, cores_per_device, setup.is_cached)
    title = (
        f"{settings.model.custom or settings.model.encoder}, {setup.size} px, {machine['device']}, "
        f"{counted(machine['cores'], 'core')}, {counted(machine['torch_threads'], 'torch thread')}"
    )
    print_tables(title, times, scaling, [str(bottleneck) for bottleneck in bottlenecks])
    path = storage.join(storage.resolve(settings.out), "bench.json")
    content = {
        "size": setup.size,
        "machine": machine,
        "settings": settings.model_dump(mode="json"),
        "stages": [entry.as_json() for entry in times],
        "scaling": scaling,
        "widen": [bottleneck.as_json() for bottleneck in bottlenecks],
    }
    storage.write_json(path, content)
    logger.info("all times are in %s", path)
