"""Memory of a GPU: its peak, and what to do when it is not enough."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lungseg.config import TrainSettings
from lungseg.errors import SettingsError


@contextmanager
def explained_memory_errors(settings: TrainSettings, run: str) -> Iterator[None]:
    """Turn an out-of-memory error of a GPU into one that names the setting to lower.

    Raises:
        SettingsError: the GPU has too little memory. A restart would repeat the error, so the run ends.

    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise SettingsError(
            f"{run}: the GPU has too little memory for {settings.rank_batch_size} images a rank: {_remedy(settings)}"
        ) from error


def _remedy(settings: TrainSettings) -> str:
    half, accumulated = settings.rank_batch_size // 2, 2 * settings.optim.accumulate_steps
    if half < settings.min_batch_size:
        return "pass another --model.encoder, or prepare with a smaller --preprocess.size"
    if settings.loader.global_batch_size and settings.loader.batch_size == "auto":
        return f"pass --optim.accumulate-steps {accumulated}"
    return f"pass --loader.batch-size {half}, and --optim.accumulate-steps {accumulated} to keep the images of a step"


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement of the peak; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(device: torch.device) -> int:
    """Return the most memory of tensors on a GPU since the last reset, in MiB; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) // 2**20 if device.type == "cuda" else 0
