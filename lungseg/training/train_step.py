"""What one rank trains: a network, its optimizer, and the moving average of its weights; and how a step is taken."""

import contextlib
import copy
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from lungseg.config import ComputeSettings, OptimSettings, TrainSettings
from lungseg.config.precision import require_fp16_device
from lungseg.errors import ResourceError
from lungseg.model.lazy_imports import norm_act
from lungseg.model.losses import bce_dice
from lungseg.model.network import LungNetwork
from lungseg.model.precision import AUTOCAST_DTYPES, resolve_precision
from lungseg.training.distributed import rank_and_world_size, wrap_for_ddp
from lungseg.training.loader import Batch

_CYCLE_START, _CYCLE_END = 1 / 25, 1e-4  # of the peak; torch's OneCycleLR begins and ends like this


class Learner:
    """One rank's network in training. With one process it is alone, with several it is wrapped for DDP."""

    def __init__(self, model: LungNetwork, device: torch.device, settings: TrainSettings) -> None:
        """Move the network to the device and make what trains it.

        Raises:
            ResourceError: the device cannot compute as asked.

        """
        self._device, self._settings, self._optim = device, settings, settings.optim
        check_compute_settings(settings.compute, rank_and_world_size()[1] if device.type == "cuda" else 0)
        precision = resolve_precision(settings.compute.precision, device)
        self.compute_mode = {"device": device.type, "precision": precision}
        """Where and how, as words; what was begun otherwise is another training."""
        self._dtype = AUTOCAST_DTYPES.get(precision)
        ready = _with_batch_norm(model, settings.compute.batch_norm, device)
        self.model = ready.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self._optim.lr, weight_decay=self._optim.weight_decay
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._updates = 0
        self._average: AveragedModel | None = None
        if self._optim.ema_decay:
            self._average = AveragedModel(self.model, multi_avg_fn=self._follow, use_buffers=True)
        self._parallel: Any = None

    def __call__(self, batch: Batch, rate: float) -> Tensor:
        """Learn from one batch, f32[B] losses of its images; move the weights if the batch is its step's last.

        A step's gradient is that of the mean over the images of all its batches on all ranks: DDP averages over ranks,
        whose batches may differ by one image, so each rank's sum is scaled by world size / images of the step.
        """
        if self._parallel is None:
            if self._settings.compute.compile:
                self.model.compile()
            self._parallel = wrap_for_ddp(self.model, self._device)
        parallel = self._parallel
        _set_training(self.model, self._settings.compute.batch_norm)
        waits = not batch.is_last_in_step and isinstance(parallel, nn.parallel.DistributedDataParallel)
        with parallel.no_sync() if waits else contextlib.nullcontext():
            images, masks = batch.to(self._device)
            with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
                logits = parallel(images)
            losses = bce_dice(logits.float(), masks, self._settings.loss)
            share = rank_and_world_size()[1] / batch.global_size
            self._scaler.scale(losses.sum() * share).backward()  # type: ignore[no-untyped-call]
        if batch.is_last_in_step:
            self._move(rate)
        return losses.detach()

    def _move(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self._optim.clip_norm:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._optim.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._updates += 1
        if self._average is not None:
            self._average.update_parameters(self.model)

    @torch.no_grad()
    def _follow(self, averages: Any, values: Any, _: Any) -> None:
        """Bring averages nearer to values; young ones follow faster, as in TensorFlow's ExponentialMovingAverage."""
        if not values[0].is_floating_point():  # batch norm's counts
            torch._foreach_copy_(averages, values)
            return
        decay = min(self._optim.ema_decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(averages, values, 1.0 - decay)

    @property
    def eval_model(self) -> nn.Module:
        """The network that is measured and saved: the moving average where there is one."""
        return self.model if self._average is None else self._average.module

    def weights(self) -> dict[str, Tensor]:
        """Copy the weights of the network that is measured to the CPU; training on does not change them."""
        state = self.eval_model.state_dict()
        return {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}

    def state(self) -> dict[str, Any]:
        """Everything beside `weights()` that going on needs: tensors and plain data."""
        state: dict[str, Any] = {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        if self._average is not None:
            state |= {"model": self.model.state_dict(), "updates": self._updates}
        return copy.deepcopy(state)

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go back to an earlier `weights()` and `state()`."""
        self.eval_model.load_state_dict(weights)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self.model.load_state_dict(state["model"])
            self._updates = state["updates"]
            self._average.n_averaged.fill_(self._updates)


@contextlib.contextmanager
def deterministic_algorithms(asked: bool) -> Iterator[None]:
    """Compute the same bits from the same GPUs while it lasts: torch's switch is the whole process's."""
    before = torch.are_deterministic_algorithms_enabled()
    if asked:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to compute
    torch.use_deterministic_algorithms(asked)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def learning_rate(step: int, total: int, settings: OptimSettings) -> float:
    """Learning rate of one step of `total`.

    constant; cosine: up in a line over the warm-up, down to nearly 0 in a half cosine; one-cycle: up from a 25th and
    down to a 10,000th, both in half cosines. A function of the step alone, so that a run goes on after a restart as if
    nothing had been. Sources: Loshchilov and Hutter, arXiv 1608.03983; Smith, arXiv 1803.09820.
    """
    if settings.schedule == "constant":
        return settings.lr
    rise = max(1, round(total * settings.warmup))
    fallen = min(1.0, max(0.0, (step - rise) / max(1, total - rise)))
    if settings.schedule == "cosine":
        return settings.lr * ((step + 1) / rise if step < rise else _half_cosine(1.0, 0.0, fallen))
    if step < rise:
        return settings.lr * _half_cosine(_CYCLE_START, 1.0, step / rise)
    return settings.lr * _half_cosine(1.0, _CYCLE_END, fallen)


def check_compute_settings(asked: ComputeSettings, gpus: int) -> None:
    """Refuse what a run on so many GPUs cannot do.

    Raises:
        SettingsError: fp16 is requested for CPUs.
        ResourceError: synchronized batch norm is requested for fewer than two GPUs.

    """
    require_fp16_device(asked.precision, gpus > 0, "--compute.precision")
    if asked.batch_norm == "sync" and gpus < 2:
        raise ResourceError("--compute.batch-norm sync needs several GPUs: pass auto, local or frozen")


def _with_batch_norm(model: LungNetwork, mode: str, device: torch.device) -> LungNetwork:
    """Make batch norm see all GPUs' images with `sync` (and with `auto` over several GPUs)."""
    several = device.type == "cuda" and rank_and_world_size()[1] > 1
    if mode == "sync" or (mode == "auto" and several):
        # torch's own conversion would lose the activation that timm's encoders keep in their batch norm.
        return norm_act.convert_sync_batchnorm(model)  # type: ignore[no-any-return,no-untyped-call]
    return model


def _set_training(model: nn.Module, batch_norm: str) -> None:
    """Put the network into training; frozen batch norm keeps its statistics (its scale and shift still learn)."""
    model.train()
    if batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))
