"""Training steps: gradient, learning rate, precision, and the moving average of the weights."""

import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from lungseg.config import ComputeSettings, LoaderSettings, LossSettings, ModelSettings, OptimSettings, TrainSettings
from lungseg.errors import SettingsError
from lungseg.model import precision
from lungseg.model.losses import bce_dice
from lungseg.model.network import build_network
from lungseg.training import train_step
from lungseg.training.loader import Batch, training_steps
from lungseg.training.train_step import Learner, learning_rate, peak_learning_rate

torch.set_num_threads(1)  # on a busy machine two threads are ten times slower

CPU = torch.device("cpu")
SMALL = ModelSettings(encoder="tu-test_efficientnet", weights="none", dropout=0.0)
FROZEN = ComputeSettings(batch_norm="frozen")
SIDE = 64
Grads = list[list[Tensor]]


def a_settings(compute: ComputeSettings = FROZEN, **optim: Any) -> TrainSettings:
    return TrainSettings(model=SMALL, compute=compute, optim=OptimSettings(**{"lr": 1e-2, **optim}))


def a_batch(*seeds: int, global_size: int = 0, is_last_in_step: bool = True) -> Batch:
    """Dark squares on grey noise with their masks."""
    masks = np.zeros((len(seeds), 1, SIDE, SIDE), np.uint8)
    images = np.empty_like(masks)
    for i, seed in enumerate(seeds):
        random = np.random.default_rng(seed)
        top, left = random.integers(4, 28, 2)
        masks[i, 0, top : top + 32, left : left + 32] = 1
        images[i] = np.where(masks[i] == 1, 60, 190) + random.integers(-30, 30, masks[i].shape)
    return Batch(torch.from_numpy(images), torch.from_numpy(masks), (), global_size or len(seeds), is_last_in_step)


class Pixelwise(nn.Module):
    """One weight, one bias, and one buffer of each dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(-0.5))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("seen", torch.tensor(0.0))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.count += 1
            self.seen += 1.0
        return images * self.scale + self.offset


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(SMALL)


def a_learner(settings: TrainSettings | None = None, model: nn.Module | None = None) -> Learner:
    return Learner(model or Pixelwise(), CPU, settings or a_settings())  # type: ignore[arg-type]


@pytest.fixture
def gradients() -> Iterator[Grads]:
    """Gradients at each optimizer step."""
    seen: Grads = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    hook = register_optimizer_step_pre_hook(note)
    yield seen
    hook.remove()


def norm(grads: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(grad.double().square().sum()) for grad in grads))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# A step


def test_step_equals_adamw_on_the_mean_loss() -> None:
    learner, plain = a_learner(a_settings(weight_decay=0.1)), Pixelwise()
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.1)
    for rate, seeds in ((0.2, (0, 1, 2)), (0.05, (3, 4)), (0.01, (5,))):
        batch = a_batch(*seeds)
        images, masks = batch.to(CPU)
        expected = bce_dice(plain(images), masks, LossSettings())
        result = learner(batch, rate)
        torch.testing.assert_close(result, expected.detach())
        assert not result.requires_grad
        optimizer.zero_grad()
        expected.mean().backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for trained, reference in zip(learner.model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(trained, reference)


def test_rank_weights_its_share_of_a_global_batch(gradients: Grads) -> None:
    a_learner()(a_batch(0, 1), 0.1)
    a_learner()(a_batch(0, 1, global_size=8), 0.1)
    torch.testing.assert_close(gradients[1], [grad / 4 for grad in gradients[0]])


def test_training_learns_a_square() -> None:
    learner = a_learner(a_settings(ComputeSettings()), network())
    losses = [float(learner(a_batch(*seeds), 1e-2).mean()) for _ in range(12) for seeds in ((0, 1, 2, 3), (4, 5, 6, 7))]
    assert sum(losses[-2:]) < 0.6 * sum(losses[:2])
    assert losses[0] > 0.8


# Several batches a step


def test_accumulated_gradient_equals_one_large_batch(gradients: Grads) -> None:
    """Needs frozen batch norm, which otherwise sees fewer images at a time."""
    large, parts = (a_learner(a_settings(accumulate_steps=n), network()) for n in (1, 2))
    for learner, batch, together in ((large, 4, 1), (parts, 2, 2)):
        for step in training_steps(12, batch, (0, 1, 1), (3, 0), 2, together):
            learner(a_batch(*step.positions, global_size=step.global_size, is_last_in_step=step.is_last_in_step), 1e-3)
    assert len(gradients) == 6
    for accumulated, expected in zip(gradients[:3], gradients[3:], strict=True):
        assert norm([a - b for a, b in zip(accumulated, expected, strict=True)]) < 1e-3 * norm(accumulated)
    # The first is equal up to rounding; later ones differ more, because Adam amplifies gradients near 0.
    assert norm([a - b for a, b in zip(gradients[0], gradients[3], strict=True)]) < 1e-5 * norm(gradients[0])


def test_unequal_batches_of_a_step_form_one_mean(gradients: Grads) -> None:
    learner, reference = a_learner(), a_learner()
    first = {name: value.clone() for name, value in learner.model.named_parameters()}
    learner(a_batch(0, 1, 2, global_size=4, is_last_in_step=False), 0.1)
    assert all(torch.equal(value, first[name]) for name, value in learner.model.named_parameters())
    assert gradients == []
    learner(a_batch(3, global_size=4), 0.1)
    reference(a_batch(0, 1, 2, 3), 0.1)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradients_are_reset_after_each_step(gradients: Grads) -> None:
    learner = a_learner()
    for _ in range(2):
        learner(a_batch(0), 0.0)
    torch.testing.assert_close(gradients[0], gradients[1])


# Clipping


def test_long_gradient_is_clipped_in_its_direction(gradients: Grads) -> None:
    for clip in (0.0, 1e-3):
        a_learner(a_settings(clip_norm=clip), network())(a_batch(0, 1), 1e-3)
    free, clipped = gradients
    assert norm(free) > 0.01
    assert norm(clipped) == pytest.approx(1e-3, rel=1e-3)
    for unclipped, clipped_gradient in zip(free, clipped, strict=True):
        torch.testing.assert_close(clipped_gradient, unclipped * (norm(clipped) / norm(free)), rtol=1e-3, atol=1e-9)


def test_a_short_gradient_is_left_alone(gradients: Grads) -> None:
    for clip in (0.0, 1e6):
        a_learner(a_settings(clip_norm=clip))(a_batch(0, 1), 1e-3)
    assert norm(gradients[0]) > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_clipping_applies_to_the_whole_step(gradients: Grads) -> None:
    learner = a_learner(a_settings(clip_norm=1e-3, accumulate_steps=2))
    learner(a_batch(0, global_size=2, is_last_in_step=False), 0.0)
    learner(a_batch(1, global_size=2), 0.0)
    a_learner(a_settings(clip_norm=1e-3))(a_batch(0, 1), 0.0)
    assert norm(gradients[0]) == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(gradients[0], gradients[1])


# Moving average


@pytest.mark.parametrize("ema", [0.3, 0.9])
def test_moving_average_follows_its_formula(ema: float) -> None:
    learner = a_learner(a_settings(ema_decay=ema))
    average: dict[str, float] = {}
    for update in range(1, 16):
        learner(a_batch(update), 0.05)
        values = {name: float(value) for name, value in learner.model.state_dict().items()}
        decay = min(ema, (1 + update) / (10 + update))
        average = {name: decay * average[name] + (1 - decay) * values[name] for name in values} if average else values
        average["count"] = values["count"]
        result = {name: float(value) for name, value in learner.weights().items()}
        assert result == pytest.approx(average, rel=1e-5)
    assert learner.eval_model is not learner.model
    assert abs(result["scale"] - values["scale"]) > 1e-3
    assert result["seen"] < values["seen"] == result["count"]


def test_moving_average_updates_once_per_step() -> None:
    learner = a_learner(a_settings(ema_decay=0.5, accumulate_steps=2))
    before = learner.weights()
    learner(a_batch(0, global_size=2, is_last_in_step=False), 0.1)
    assert same(learner.weights(), before)
    learner(a_batch(1, global_size=2), 0.1)
    assert not same(learner.weights(), before)


def test_no_moving_average_keeps_one_network() -> None:
    learner = a_learner()
    assert learner.eval_model is learner.model
    assert "model" not in learner.state()


# Weights and state


def test_weights_are_a_copy() -> None:
    learner = a_learner(a_settings(ComputeSettings()), network())
    saved = learner.weights()
    before = {name: value.clone() for name, value in saved.items()}
    learner(a_batch(0, 1), 1e-2)
    assert same(saved, before)
    after = learner.weights()
    assert all(not torch.equal(after[name], saved[name]) for name, _ in learner.model.named_parameters())
    assert all(value.is_contiguous() for value in after.values())


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_loaded_state_continues_bit_for_bit(ema: float) -> None:
    settings = a_settings(ComputeSettings(), ema_decay=ema, weight_decay=0.1)
    reference = a_learner(settings, network())
    for step in range(3):
        reference(a_batch(step, step + 1), 1e-2)
    weights, state = reference.weights(), reference.state()
    for step in (3, 4):
        reference(a_batch(step, step + 1), 1e-2)
    other = a_learner(settings, network(seed=9))
    other.load(weights, state)
    assert same(other.weights(), weights)
    for step in (3, 4):
        other(a_batch(step, step + 1), 1e-2)
    assert same(other.weights(), reference.weights())
    assert same(dict(other.model.state_dict()), dict(reference.model.state_dict()))
    without_state = a_learner(settings, network(seed=9))
    without_state.model.load_state_dict(weights)
    without_state(a_batch(3, 4), 1e-2)
    without_state(a_batch(4, 5), 1e-2)
    assert not same(without_state.weights(), reference.weights())


# Batch norm


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name or "tracked" in name}


@pytest.mark.parametrize("mode", ["frozen", "auto", "local"])
def test_frozen_batch_norm_trains_scale_and_shift_only(mode: str) -> None:
    model = network()
    learner = a_learner(a_settings(ComputeSettings(batch_norm=mode)), model)  # type: ignore[arg-type]
    before = statistics(model)
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    affine = {name: (m.weight.detach().clone(), m.bias.detach().clone()) for name, m in norms.items()}
    learner(a_batch(0, 1), 1e-2)
    assert same(statistics(model), before) == (mode == "frozen")
    for name, module in norms.items():
        assert not torch.equal(module.weight, affine[name][0])
        assert not torch.equal(module.bias, affine[name][1])
        assert module.training == (mode != "frozen")
    assert model.training


def test_batch_of_one_image_needs_frozen_batch_norm() -> None:
    for mode, refused in (("frozen", False), ("local", True)):
        learner = a_learner(a_settings(FROZEN), network())
        learner.batch_norm = mode  # type: ignore[assignment]
        if refused:
            with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
                learner(a_batch(0), 1e-2)
        else:
            assert math.isfinite(float(learner(a_batch(0), 1e-2)))


# Precision, compilation, determinism


@pytest.mark.parametrize(
    ("requested", "device", "has_bf16", "expected"),
    [
        ("auto", "cpu", True, "fp32"),
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp16"),
        ("fp32", "cuda", True, "fp32"),
        ("fp16", "cuda", True, "fp16"),
        ("bf16", "cpu", False, "bf16"),
    ],
)
def test_auto_precision_follows_the_device(
    requested: Any, device: str, has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    assert precision.resolve_precision(requested, torch.device(device)) == expected


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--compute\.precision fp16 on a CPU: fp16 needs a GPU; pass bf16 or fp32"):
        a_learner(a_settings(ComputeSettings(precision="fp16")))


def test_bf16_trains_on_a_cpu_with_fp32_weights() -> None:
    losses: dict[str, list[float]] = {}
    for kind in ("fp32", "bf16"):
        learner = a_learner(a_settings(ComputeSettings(precision=kind)), network())  # type: ignore[arg-type]
        result = [learner(a_batch(0, 1, 2, 3), 1e-2) for _ in range(8)]
        assert {loss.dtype for loss in result} == {torch.float32}
        assert {value.dtype for value in learner.weights().values()} == {torch.float32, torch.int64}
        losses[kind] = [float(loss.mean()) for loss in result]
    assert losses["bf16"][-1] < 0.9 * losses["bf16"][0]
    assert losses["bf16"][0] == pytest.approx(losses["fp32"][0], rel=0.03)
    assert losses["bf16"] != losses["fp32"]


def test_compiled_network_trains_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: real(self, backend=backend))
    plain, fast = (
        a_learner(a_settings(ComputeSettings(compile=enabled, batch_norm="frozen"))) for enabled in (False, True)
    )
    for seed in range(3):
        losses = [learner(a_batch(seed, seed + 1), 0.1) for learner in (plain, fast)]
        torch.testing.assert_close(*losses)
    torch._dynamo.reset()
    assert compiled
    assert plain.weights().keys() == fast.weights().keys()
    torch.testing.assert_close(plain.weights(), fast.weights())


class Operations(TorchDispatchMode):
    """Records the names of the operations on tensors, also of the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("waits", [False, True])
def test_a_step_reads_no_value_from_its_device(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the fused optimizer, as on GPUs, where reading a value waits for all the work before it."""
    monkeypatch.setattr(torch.optim, "AdamW", partial(fused_adamw, torch.optim.AdamW))
    settings = a_settings(ComputeSettings(), ema_decay=0.9, clip_norm=1.0, weight_decay=0.1)
    learner = a_learner(settings, network())
    learner(a_batch(0, 1), 1e-2)
    with Operations() as operations:
        losses = learner(a_batch(2, 3), 1e-2)
        if waits:
            float(losses.mean())
    reads = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"}
    assert bool(reads & operations.names) == waits
    assert "aten::_fused_adamw_" in operations.names


def fused_adamw(optimizer: Any, *args: Any, **options: Any) -> torch.optim.Optimizer:
    return optimizer(*args, **{**options, "fused": True})  # type: ignore[no-any-return]


def test_search_for_unused_parameters_finds_them_and_changes_nothing() -> None:
    """DDP on GPUs searches for them in each step only if there are any."""
    model, image = network(), torch.rand(1, 1, SIDE, SIDE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    assert not train_step.has_unused_parameters(model, image)
    assert torch.equal(torch.rand(1), expected)
    assert same(dict(model.state_dict()), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    assert train_step.has_unused_parameters(model, image)


@pytest.mark.parametrize("requested", [False, True])
def test_deterministic_mode_ends_with_its_block(requested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "whatever it was")  # restored after the test
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = torch.are_deterministic_algorithms_enabled()
    result = []
    with pytest.raises(ZeroDivisionError), train_step.deterministic_algorithms(requested):
        result += [torch.are_deterministic_algorithms_enabled(), "CUBLAS_WORKSPACE_CONFIG" in os.environ, 1 / 0]
    with train_step.deterministic_algorithms(requested):
        result += [torch.are_deterministic_algorithms_enabled(), "CUBLAS_WORKSPACE_CONFIG" in os.environ]
    assert result == [requested, requested]
    assert torch.are_deterministic_algorithms_enabled() == before


# Learning rate

schedules = st.builds(
    OptimSettings,
    lr=st.floats(1e-6, 1.0),
    schedule=st.sampled_from(["cosine", "one-cycle"]),
    warmup=st.floats(0.0, 0.5),
)


def rates(total: int, settings: OptimSettings) -> list[float]:
    return [learning_rate(step, total, settings) for step in range(total)]


@given(st.integers(1, 300), st.floats(1e-6, 1.0), st.data())
def test_a_constant_learning_rate_is_constant(total: int, lr: float, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total - 1))
    assert learning_rate(step, total, OptimSettings(lr=lr)) == lr


@given(st.integers(2, 500), schedules)
def test_schedule_rises_over_the_warmup_then_falls(total: int, settings: OptimSettings) -> None:
    result = rates(total, settings)
    warm = max(1, round(total * settings.warmup))
    assert max(result) == pytest.approx(settings.lr)
    assert result[warm] == pytest.approx(settings.lr, rel=1e-9)
    assert result[: warm + 1] == sorted(result[: warm + 1])
    assert result[warm:] == sorted(result[warm:], reverse=True)
    assert all(0 < rate <= settings.lr * (1 + 1e-9) for rate in result)


@given(st.integers(40, 500), schedules)
def test_schedule_starts_low_and_ends_near_zero(total: int, settings: OptimSettings) -> None:
    result = [rate / settings.lr for rate in rates(total, settings)]
    warm = max(1, round(total * settings.warmup))
    if settings.schedule == "one-cycle":
        assert result[0] == pytest.approx(1 / 25)
    else:
        assert result[0] == pytest.approx(1 / warm)
    # One step before the end of the half cosine.
    left = 0.5 * (1 - math.cos(math.pi / (total - warm)))
    assert result[-1] == pytest.approx(left if settings.schedule == "cosine" else left + (1 - left) * 1e-4, rel=1e-4)
    assert result[-1] < 0.5


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.5 * (1 + math.cos(math.pi * 15 / 16))]),
        ("one-cycle", [0.04, 0.04 + 0.96 * (1 - math.sqrt(0.5)) / 2, 0.52, None, 1.0, (1 + 1e-4) / 2, None]),
    ],
)
def test_schedules_of_known_steps(schedule: Any, expected: list[float | None]) -> None:
    settings = OptimSettings(lr=1e-2, schedule=schedule, warmup=0.2)
    for step, share in zip((0, 1, 2, 3, 4, 12, 19), expected, strict=True):
        if share is not None:
            assert learning_rate(step, 20, settings) == pytest.approx(share * settings.lr)


def test_every_step_has_its_own_rate(gradients: Grads) -> None:
    used: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    learner = a_learner()
    for number, rate in enumerate((0.1, 0.2, 0.3, 0.4)):
        learner(a_batch(0, global_size=2, is_last_in_step=number % 2 == 1), rate)
    hook.remove()
    assert used == [0.2, 0.4]


@pytest.mark.parametrize(("scaling", "peak"), [("none", 1e-2), ("sqrt", 2e-2), ("linear", 4e-2)])
def test_the_rate_scales_with_the_images_per_step(scaling: str, peak: float) -> None:
    settings = a_settings(scale_lr=scaling).model_copy(update={"workers_per_run": 4})
    assert peak_learning_rate(settings) == pytest.approx(peak)
    rates = [learning_rate(step, 100, settings.optim, peak_learning_rate(settings)) for step in range(100)]
    assert rates[0] == pytest.approx(1e-2)
    assert rates[5] == pytest.approx((1e-2 + peak) / 2)
    assert rates[10:] == pytest.approx([peak] * 90)


def test_a_smaller_batch_lowers_the_rate_at_once() -> None:
    settings = a_settings(scale_lr="linear").model_copy(update={"loader": LoaderSettings(batch_size=2)})
    rates = {learning_rate(step, 100, settings.optim, peak_learning_rate(settings)) for step in range(100)}
    assert rates == {2.5e-3}


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_a_scaled_schedule_keeps_its_shape(schedule: str) -> None:
    settings = OptimSettings(lr=1e-3, schedule=schedule)  # type: ignore[arg-type]
    plain = [learning_rate(step, 50, settings) for step in range(50)]
    assert [learning_rate(step, 50, settings, 8e-3) for step in range(50)] == pytest.approx([8 * r for r in plain])
