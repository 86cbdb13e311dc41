"""The backend of an inference: chosen once for an output folder, which never mixes two of them."""

from collections.abc import Sequence
from dataclasses import replace

from lungseg import storage
from lungseg.config import Backend, InferSettings
from lungseg.errors import InputError, SettingsError
from lungseg.inference.backends import RUNTIMES
from lungseg.inference.backends.selection import choose_backend
from lungseg.inference.cpu_tasks import InferenceJob
from lungseg.model import checkpoint
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.graph_file import is_graph, require_torch_model
from lungseg.predictions.parts import part_files


def with_cpu_backend(settings: InferSettings, models: Sequence[Checkpoint]) -> InferSettings:
    """Return the settings with --device cpu if the backend that they name, or a model, computes on CPUs only.

    Raises:
        CheckpointError: they ask for torch, a GPU or a profile for a model that is a graph.
        SettingsError: they ask for a GPU or a profile with a backend that computes on CPUs.

    """
    if settings.backend not in RUNTIMES:
        if settings.backend == "torch" or settings.profile or settings.device == "gpu":
            for model in models:
                require_torch_model(model.folder)
        has_graph = any(is_graph(model.folder) for model in models)
        return settings.model_copy(update={"device": "cpu"}) if has_graph else settings
    if settings.device == "gpu":
        raise SettingsError(f"--backend {settings.backend} computes on CPUs: pass --device cpu, or --backend torch")
    if settings.profile:
        raise SettingsError(f"--profile records torch, not {settings.backend}: pass --backend torch")
    return settings.model_copy(update={"device": "cpu"})


def require_same_backend(settings: InferSettings, out: str) -> None:
    """Check that a named backend continues the folder, before anything is started.

    Raises:
        InputError: the folder has parts of another one.

    """
    if settings.backend != "auto":
        _require_same(out, settings.backend)


def with_backend(job: InferenceJob, device: str, few_images: bool = False) -> InferenceJob:
    """Choose the backend on a device, cpu or cuda, record it in plan.json, and return the job with both.

    few_images: too few to convert a model for them, see `choose_backend`.

    Raises:
        LungsegError: the backend cannot be used, or the folder has parts of another one.

    """
    options = replace(job.options, device=device)
    requested: Backend = "torch" if job.settings.profile else job.settings.backend
    models = [checkpoint.verify(folder) for folder in job.checkpoints]
    backend = choose_backend(requested, models, options, recorded_backend(job.out), few_images)
    claim_backend(job.out, backend)
    return replace(job, options=replace(options, backend=backend))


def recorded_backend(out: str) -> Backend | None:
    """Return the backend of the parts in a folder; torch for those of versions that had no other; None for no parts."""
    if not part_files(out):
        return None
    path = storage.join(out, "plan.json")
    backend: Backend = storage.read_json(path).get("backend", "torch") if storage.exists(path) else "torch"
    return backend


def claim_backend(out: str, backend: Backend) -> None:
    """Record the backend in plan.json.

    Raises:
        InputError: finished parts were computed with another one.

    """
    _require_same(out, backend)
    path = storage.join(out, "plan.json")
    storage.write_json(path, {**storage.read_json(path), "backend": backend})


def _require_same(out: str, backend: Backend) -> None:
    earlier = recorded_backend(out)
    if earlier not in (None, backend):
        raise InputError(
            f"{out} holds parts computed with {earlier}, this run would use {backend}, whose masks differ in some "
            f"pixels: pass --backend {earlier}, or another --out"
        )
