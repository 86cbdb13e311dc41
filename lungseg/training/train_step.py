"""The network of one rank in training, its optimizer, and the moving average of its weights."""

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
from lungseg.config.batches import DEFAULT_BATCH_SIZE
from lungseg.config.precision import require_fp16_device
from lungseg.errors import ResourceError
from lungseg.model.custom_code import STEP, guarded, load_object
from lungseg.model.lazy_imports import norm_act
from lungseg.model.losses import make_loss, require_losses
from lungseg.model.network import LungNetwork
from lungseg.model.precision import AUTOCAST_DTYPES, resolve_precision
from lungseg.training.distributed import rank_and_world_size, wrap_for_ddp
from lungseg.training.loader import Batch

_CYCLE_START, _CYCLE_END = 1 / 25, 1e-4  # of the peak, as in torch's OneCycleLR


class Learner:
    """One rank's network in training, wrapped for DDP if there are several ranks."""

    def __init__(self, model: LungNetwork, device: torch.device, settings: TrainSettings) -> None:
        """Move the network to the device and create its optimizer.

        Raises:
            ResourceError: the device does not support the settings.

        """
        self._device, self._settings, self._optim = device, settings, settings.optim
        check_compute_settings(settings.compute, rank_and_world_size()[1] if device.type == "cuda" else 0)
        precision = resolve_precision(settings.compute.precision, device)
        self.compute_mode = {"device": device.type, "precision": precision}
        """Device type and precision; a run cannot be resumed with other values."""
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
            self._average = AveragedModel(self.model, multi_avg_fn=self._update_average, use_buffers=True)
        self._parallel: Any = None
        self._loss = make_loss(settings.loss, device)
        self._custom_step = load_object(STEP, self._optim.custom_step) if self._optim.custom_step else None

    def __call__(self, batch: Batch, rate: float) -> Tensor:
        """Train on one batch and return its per-image losses f32[B]; update the weights after a step's last batch.

        The gradient of a step is that of the mean loss over the images of all its batches on all ranks. DDP averages
        over ranks, whose batches may differ by one image, so each rank scales its sum by world_size / images of the
        step.
        """
        if self._parallel is None:
            if self._settings.compute.compile:
                self.model.compile()
            self._parallel = wrap_for_ddp(self.model, self._device)
        parallel = self._parallel
        _set_training(self.model, self._settings.compute.batch_norm)
        accumulates = not batch.is_last_in_step and isinstance(parallel, nn.parallel.DistributedDataParallel)
        with parallel.no_sync() if accumulates else contextlib.nullcontext():
            images, masks = batch.to(self._device)
            losses = self._losses(parallel, images, masks)
            weight = rank_and_world_size()[1] / batch.global_size
            self._scaler.scale(losses.sum() * weight).backward()  # type: ignore[no-untyped-call]
        if batch.is_last_in_step:
            self._optimizer_step(rate)
        return losses.detach()

    def _losses(self, network: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        """Predict and return the losses f32[B], in fp32; a custom step predicts itself."""
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            if self._custom_step is not None:
                path = self._optim.custom_step
                losses = guarded(STEP, path, self._custom_step)(network, images, masks, self._loss_in_fp32)
                return require_losses(losses, len(images), STEP, path).float()
            logits = network(images)
        return self._loss(logits.float(), masks)

    def _loss_in_fp32(self, logits: Tensor, masks: Tensor) -> Tensor:
        with torch.autocast(self._device.type, enabled=False):
            return self._loss(logits.float(), masks.float())

    def _optimizer_step(self, rate: float) -> None:
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
    def _update_average(self, averages: Any, values: Any, _: Any) -> None:
        """Move averages towards values, faster in early updates, as in TensorFlow's ExponentialMovingAverage."""
        if not values[0].is_floating_point():  # batch counts of batch norm
            torch._foreach_copy_(averages, values)
            return
        decay = min(self._optim.ema_decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(averages, values, 1.0 - decay)

    @property
    def eval_model(self) -> nn.Module:
        """The network that is evaluated and saved: the moving average, if enabled."""
        return self.model if self._average is None else self._average.module

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights of `eval_model` on the CPU."""
        state = self.eval_model.state_dict()
        return {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}

    def state(self) -> dict[str, Any]:
        """Return everything besides `weights()` that resuming needs: tensors and plain data."""
        state: dict[str, Any] = {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        if self._average is not None:
            state |= {"model": self.model.state_dict(), "updates": self._updates}
        return copy.deepcopy(state)

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Restore an earlier `weights()` and `state()`."""
        self.eval_model.load_state_dict(weights)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self.model.load_state_dict(state["model"])
            self._updates = state["updates"]
            self._average.n_averaged.fill_(self._updates)


@contextlib.contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Make GPU results reproducible to the bit inside the block; affects the whole process."""
    before = torch.are_deterministic_algorithms_enabled()
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it in this mode
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def peak_learning_rate(settings: TrainSettings) -> float:
    """Return the highest learning rate of a run, scaled to its images per step if the settings say so.

    Sources: linear, Goyal et al., arXiv 1706.02677, with a warm-up; square root, Krizhevsky, arXiv 1404.5997, and
    Hoffer et al., arXiv 1705.08741.
    """
    ratio = settings.step_size / DEFAULT_BATCH_SIZE
    factors = {"none": 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}
    return settings.optim.lr * factors[settings.optim.scale_lr]


def learning_rate(step: int, total: int, settings: OptimSettings, peak: float = 0.0) -> float:
    """Return the learning rate of one step out of `total`.

    constant: always the peak, after a linear warm-up from lr if the peak is higher. cosine: linear warm-up, then a half
    cosine to nearly 0. one-cycle: half cosines up from peak/25 and down to peak/10,000. peak: 0 means lr. Depends on
    the step only, so that a resumed run uses the same rates. Sources: Loshchilov and Hutter, arXiv 1608.03983; Smith,
    arXiv 1803.09820; warm-up of a constant rate: Goyal et al., arXiv 1706.02677.
    """
    peak = peak or settings.lr
    warmup = max(1, round(total * settings.warmup))
    if settings.schedule == "constant":
        return settings.lr + (peak - settings.lr) * min(1.0, step / warmup) if peak > settings.lr else peak
    decay_share = min(1.0, max(0.0, (step - warmup) / max(1, total - warmup)))
    if settings.schedule == "cosine":
        return peak * ((step + 1) / warmup if step < warmup else _half_cosine(1.0, 0.0, decay_share))
    if step < warmup:
        return peak * _half_cosine(_CYCLE_START, 1.0, step / warmup)
    return peak * _half_cosine(1.0, _CYCLE_END, decay_share)


def check_compute_settings(compute: ComputeSettings, gpus: int) -> None:
    """Check that a run on this number of GPUs supports the compute settings.

    Raises:
        SettingsError: fp16 is requested for CPUs.
        ResourceError: synchronized batch norm is requested for fewer than two GPUs.

    """
    require_fp16_device(compute.precision, gpus > 0, "--compute.precision")
    if compute.batch_norm == "sync" and gpus < 2:
        raise ResourceError("--compute.batch-norm sync needs several GPUs: pass auto, local or frozen")


def _with_batch_norm(model: LungNetwork, mode: str, device: torch.device) -> LungNetwork:
    """Synchronise batch norm over GPUs for `sync`, and for `auto` on several GPUs."""
    has_several_gpus = device.type == "cuda" and rank_and_world_size()[1] > 1
    if mode == "sync" or (mode == "auto" and has_several_gpus):
        # torch's own conversion would drop the activation that is part of timm's batch norm.
        return norm_act.convert_sync_batchnorm(model)  # type: ignore[no-any-return,no-untyped-call]
    return model


def _set_training(model: nn.Module, batch_norm: str) -> None:
    """Set training mode; frozen batch norm keeps its statistics, but its scale and shift are still trained."""
    model.train()
    if batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))
