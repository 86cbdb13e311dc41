"""Choose the backend of a job: the one that the user names, or the fastest one whose masks are those of torch."""

import importlib.util
import logging
import time
from collections.abc import Sequence

import numpy as np

from lungseg.arrays import U8
from lungseg.config import Backend, PreprocessSettings
from lungseg.errors import CheckpointError, SettingsError
from lungseg.imaging import phantom
from lungseg.imaging.geometry import prepare_image
from lungseg.inference.backends import RUNTIMES, Network, Runtime, is_installed, open_network, require_installed
from lungseg.inference.items import PredictOptions
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.checkpoint_classes import threshold_column
from lungseg.model.graph_file import can_run, is_graph, require_torch_model
from lungseg.model.onnx_cache import find_or_export, is_converted
from lungseg.model.onnx_file import Check, ExportError

logger = logging.getLogger(__name__)

MAX_CHANGED = 1e-4
"""Largest share of pixels whose mask may differ from that of torch."""
_PHANTOMS = 4
_TIMED_RUNS = 2


def choose_backend(
    requested: Backend,
    models: Sequence[Checkpoint],
    options: PredictOptions,
    earlier: Backend | None = None,
    few_images: bool = False,
) -> Backend:
    """Return the backend for these models. earlier: that of results which are continued; auto takes it again.

    The first call for a model converts it to ONNX and compares the masks of synthetic X-rays, which takes seconds.
    few_images: too few to be worth that; auto takes torch for a model that was not converted yet.

    Raises:
        SettingsError: the named backend is not installed, or cannot compute with these options.
        CheckpointError: the named backend cannot run a model, or its masks differ.

    """
    if requested == "torch":
        for model in models:
            require_torch_model(model.folder)
        return requested
    if requested != "auto":
        _require_usable(requested, options)
        for model in models:
            _require_readable(model, requested)
            _require_same_masks(model, requested, options.custom_network)
        return requested
    if not _fits_runtimes(options):
        return "torch"
    if earlier == "torch" or (earlier and is_installed(earlier)):
        return earlier
    if few_images and _has_torch() and not all(is_converted(model, options.custom_network) for model in models):
        return "torch"
    return _fastest(models, options.custom_network)


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _fits_runtimes(options: PredictOptions) -> bool:
    return options.device == "cpu" and options.precision in ("auto", "fp32")


def _require_usable(runtime: Runtime, options: PredictOptions) -> None:
    require_installed(runtime)
    if options.device != "cpu":
        raise SettingsError(f"--backend {runtime} computes on CPUs: pass --device cpu, or --backend torch")
    if not _fits_runtimes(options):
        raise SettingsError(f"--backend {runtime} computes in fp32: leave --precision out, or pass --backend torch")


def _require_readable(model: Checkpoint, runtime: Runtime) -> None:
    if not can_run(model.folder, runtime):
        raise SettingsError(f"{model.folder}: {runtime} reads no OpenVINO files: pass --backend openvino")


def _require_same_masks(model: Checkpoint, runtime: Runtime, custom_network: str) -> None:
    check = _checks(model, [runtime], custom_network).get(runtime)
    if check is None:
        logger.warning("%s: its masks in %s were never compared with those of torch", model.folder, runtime)
    elif not check.passed:
        raise CheckpointError(
            f"{model.folder}: {check.changed:.4%} of the pixels of its masks differ between {runtime} and torch, more "
            f"than {MAX_CHANGED:.2%}: pass --backend torch"
        )


def _fastest(models: Sequence[Checkpoint], custom_network: str) -> Backend:
    readers = [runtime for runtime in RUNTIMES if all(can_run(model.folder, runtime) for model in models)]
    installed = [runtime for runtime in readers if is_installed(runtime)]
    graphs = [model.folder for model in models if is_graph(model.folder)]
    if graphs and not installed:
        raise SettingsError(f"{graphs[0]} needs another package: run pip install {readers[0]}")
    if not installed:
        return "torch"
    try:
        checks = [_checks(model, installed, custom_network) for model in models]
    except ExportError as error:
        logger.info("%s; using torch", error)
        return "torch"
    usable: list[Backend] = [name for name in installed if all(name in each and each[name].passed for each in checks)]
    if graphs:
        usable = usable or [installed[0]]
    elif _has_torch() and (not usable or all("torch" in each for each in checks)):
        usable.append("torch")  # without its time, as in the graph of an installed model, only if nothing else can
    return min(usable, key=lambda name: sum(each[name].seconds for each in checks if name in each))


def _checks(model: Checkpoint, runtimes: Sequence[Runtime], custom_network: str) -> dict[str, Check]:
    """Return the comparisons of a model with torch by backend; those that are missing are made where torch is."""
    cached = find_or_export(model, custom_network)
    missing = [runtime for runtime in runtimes if runtime not in cached.checks]
    if missing and not is_graph(model.folder) and _has_torch():
        cached = cached.add_checks(_compare(model, cached.path, missing, custom_network))
    return cached.checks


def _compare(model: Checkpoint, path: str, runtimes: Sequence[Runtime], custom_network: str) -> dict[str, Check]:
    """Compare the masks of synthetic X-rays with those of torch."""
    from lungseg.inference.ensemble import Predictor

    logger.info("%s: comparing %s with torch, once", model.folder, " and ".join(runtimes))
    images = _phantoms(model.preprocess)
    torch_network = Predictor(model, PredictOptions(precision="fp32", custom_network=custom_network))
    threshold = threshold_column(model)
    expected = torch_network(images) >= threshold
    checks = {"torch": Check(changed=0.0, passed=True, seconds=seconds_of(torch_network, images))}
    for runtime in runtimes:
        network = open_network(path, runtime)
        changed = float(((network(images) >= threshold) != expected).mean())
        checks[runtime] = Check(changed=changed, passed=changed <= MAX_CHANGED, seconds=seconds_of(network, images))
    return checks


def _phantoms(preprocess: PreprocessSettings) -> U8:
    """Draw synthetic X-rays as images u8[B,1,S,S]."""
    drawn = [phantom.draw(seed, phantom.STYLES[seed % 2], preprocess.size)[0] for seed in range(_PHANTOMS)]
    return np.stack([prepare_image(image, preprocess)[0] for image in drawn])[:, None]


def seconds_of(network: Network, images: U8) -> float:
    """Return the time for one image, the shortest of several."""
    times = []
    for _ in range(_TIMED_RUNS):
        began = time.perf_counter()
        network(images[:2])
        times.append((time.perf_counter() - began) / 2)
    return min(times)
