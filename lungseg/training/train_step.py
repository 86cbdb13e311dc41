"""The network of one rank in training, its optimizer, and the moving average of its weights."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lungseg.config import OptimSettings, TrainSettings
from lungseg.config.batches import DEFAULT_BATCH_SIZE
from lungseg.config.precision import require_fp16_device
from lungseg.model.custom_code import STEP, guarded, load_object
from lungseg.model.losses import make_loss, require_losses
from lungseg.model.network import LungNetwork
from lungseg.model.precision import AUTOCAST_DTYPES, resolve_precision
from lungseg.training.batch_norm import resolve_batch_norm, set_training, with_batch_norm
from lungseg.training.distributed import rank_and_world_size, wrap_for_ddp
from lungseg.training.loader import Batch
from lungseg.training.weight_average import WeightAverage

_CYCLE_START, _CYCLE_END = 1 / 25, 1e-4  # of the peak, as in torch's OneCycleLR


class Learner:
    """One rank's network in training, wrapped for DDP if there are several ranks."""

    def __init__(self, model: LungNetwork, device: torch.device, settings: TrainSettings) -> None:
        """Move the network to the device and create its optimizer.

        Raises:
            ResourceError: the device does not support the settings.

        """
        self.device, self._settings, self._optim = device, settings, settings.optim
        check_compute_settings(settings, device.type == "cuda")
        precision = resolve_precision(settings.compute.precision, device)
        self.compute_mode = {"device": device.type, "precision": precision}
        """Device type and precision; a run cannot be resumed with other values."""
        self.test_precision = resolve_precision("auto", device)
        """Precision that the model is tested in: the one that lungseg infer uses by default on this device."""
        self._dtype = AUTOCAST_DTYPES.get(precision)
        self.batch_norm = resolve_batch_norm(settings, device.type == "cuda")
        ready = with_batch_norm(model, self.batch_norm)
        self.model = ready.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self._optim.lr,
            weight_decay=self._optim.weight_decay,
            fused=True if device.type == "cuda" else None,  # on CPUs it would round differently
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._average = WeightAverage(self.model, self._optim.ema_decay) if self._optim.ema_decay else None
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
            self._parallel = self._prepared(batch)
        parallel = self._parallel
        set_training(self.model, self.batch_norm)
        accumulates = not batch.is_last_in_step and isinstance(parallel, nn.parallel.DistributedDataParallel)
        with parallel.no_sync() if accumulates else contextlib.nullcontext():
            images, masks = batch.to(self.device)
            losses = self._losses(parallel, images, masks)
            weight = rank_and_world_size()[1] / batch.global_size
            self._scaler.scale(losses.sum() * weight).backward()  # type: ignore[no-untyped-call]
        if batch.is_last_in_step:
            self._optimizer_step(rate)
        return losses.detach()

    def _prepared(self, batch: Batch) -> nn.Module:
        """Return the network compiled and wrapped for DDP, as the settings say."""
        needs_order = self.device.type == "cpu" or self._settings.compute.deterministic
        find_unused = needs_order or self._custom_step is not None
        if not find_unused and rank_and_world_size()[1] > 1:
            find_unused = has_unused_parameters(self.model, batch.to(self.device)[0][:1])
        if self._settings.compute.compile:
            self.model.compile()
        return wrap_for_ddp(self.model, self.device, find_unused)

    def _losses(self, network: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        """Predict and return the losses f32[B], in fp32; a custom step predicts itself."""
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
            if self._custom_step is not None:
                path = self._optim.custom_step
                losses = guarded(STEP, path, self._custom_step)(network, images, masks, self._loss_in_fp32)
                return require_losses(losses, len(images), STEP, path).float()
            logits = network(images)
        return self._loss(logits.float(), masks)

    def _loss_in_fp32(self, logits: Tensor, masks: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
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
        if self._average is not None:
            self._average.update(self.model)

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
            state |= {"model": self.model.state_dict(), "updates": self._average.updates}
        return _on_cpu(state)  # type: ignore[no-any-return]

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Restore an earlier `weights()` and `state()`."""
        self.eval_model.load_state_dict(weights)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self.model.load_state_dict(state["model"])
            self._average.updates = state["updates"]


def has_unused_parameters(model: nn.Module, images: Tensor) -> bool:
    """Return whether the network has weights that its output does not depend on. Changes nothing else.

    images: f32[1,1,S,S] on the device of the network.
    """
    model.eval()
    model(images).sum().backward()
    unused = any(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    model.zero_grad(set_to_none=True)
    return unused


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


def check_compute_settings(settings: TrainSettings, on_gpus: bool) -> None:
    """Check that the devices support the compute settings.

    Raises:
        SettingsError: fp16 is requested for CPUs.
        ResourceError: synchronized batch norm is requested for fewer than two GPUs.

    """
    require_fp16_device(settings.compute.precision, on_gpus, "--compute.precision")
    resolve_batch_norm(settings, on_gpus)


def _on_cpu(value: Any) -> Any:
    """Return a copy of nested dicts and lists whose tensors are copies on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _on_cpu(item) for name, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))
