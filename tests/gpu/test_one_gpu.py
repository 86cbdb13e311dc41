"""Training and inference on one GPU."""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lungseg.config import ComputeSettings, OptimSettings, TrainSettings
from lungseg.dataset import catalog
from lungseg.dataset.sample_reader import SampleReader
from lungseg.errors import SettingsError
from lungseg.inference.ensemble import Predictor
from lungseg.inference.items import PredictOptions
from lungseg.model import checkpoint
from lungseg.model.compiler import missing_for_compile
from lungseg.model.network import build_network
from lungseg.training import loader
from lungseg.training.study_data import open_training_data
from lungseg.training.train_step import Learner
from lungseg.training.weight_average import WeightAverage
from tests.gpu.runs import DEVICE, MODEL, SETTINGS, metrics, train

LEARNING = {"epochs": 14, "optim": OptimSettings(lr=5e-3, ema_decay=0.9, clip_norm=1.0)}


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder and run.json of a run with default settings, trained until it separates lungs from noise; read-only."""
    folder = tmp_path_factory.mktemp("gpu") / "run"
    return folder, train(prepared, folder, **LEARNING)


@pytest.fixture(scope="module")
def batch(prepared: Path) -> loader.Batch:
    reader = SampleReader(open_training_data(catalog.find_datasets([str(prepared)])), 64)
    (one,) = loader.load_batches(reader, [loader.Step((0, 1, 2, 3), 4)], 2)
    return one


# Training


def test_batches_that_were_copied_ahead_are_the_same(prepared: Path) -> None:
    reader = SampleReader(open_training_data(catalog.find_datasets([str(prepared)])), 64)
    steps = [loader.Step((number % 8, (number + 1) % 8), 2) for number in range(12)]
    for ahead, plain in zip(
        loader.load_batches(reader, steps, 2, device=DEVICE), loader.load_batches(reader, steps, 2), strict=True
    ):
        assert ahead.images.device.type == DEVICE.type
        for one, other in zip(ahead.to(DEVICE), plain.to(torch.device("cpu")), strict=True):
            torch.testing.assert_close(one.cpu(), other)  # a GPU may multiply by 1 / 255


def test_run_learns_and_is_tested(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = trained
    rows = metrics(folder)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert summary["tested"][0]["dice"] > 0.5
    assert summary["compute_mode"]["device"] == DEVICE.type


@pytest.mark.only_on_gpus
def test_run_records_how_the_gpu_computed(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = trained
    precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    assert summary["compute_mode"]["precision"] == summary["execution"]["test_precision"] == precision
    kernels = {"cudnn_benchmark": True, "tf32": True, "fused_optimizer": True}
    assert summary["execution"].items() >= {**kernels, "batch_norm": "local"}.items()
    for row in metrics(folder):
        assert row["peak_device_mib"] > 0
        assert 0.0 <= row["device_wait_share"] <= 1.0


class CrashError(Exception):
    """Simulates the end of the process."""


def test_killed_run_gives_the_same_weights(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: dict[str, Any] = {
        "compute": ComputeSettings(deterministic=True),
        "save_steps": 1,
        "optim": OptimSettings(lr=5e-3, ema_decay=0.9),
    }

    def killed(progress: Any) -> None:
        if (progress.epoch, progress.step) == (2, 2):
            raise CrashError

    train(prepared, tmp_path / "whole", **settings)
    with pytest.raises(CrashError):
        train(prepared, tmp_path / "killed", killed, **settings)
    train(prepared, tmp_path / "killed", **settings)
    whole, resumed = (checkpoint.find_all(str(tmp_path / name))[0].digest for name in ("whole", "killed"))
    assert whole == resumed


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.only_on_gpus)])
def test_half_precision_begins_like_fp32(precision: Any, prepared: Path, tmp_path: Path) -> None:
    if precision == "bf16" and DEVICE.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    losses = {}
    for kind in ("fp32", precision):
        train(prepared, tmp_path / kind, epochs=3, compute=ComputeSettings(precision=kind))
        losses[kind] = [row["loss"] for row in metrics(tmp_path / kind)]
    assert all(map(math.isfinite, losses[precision]))
    assert losses[precision][0] == pytest.approx(losses["fp32"][0], rel=0.05)
    assert losses[precision][-1] < losses[precision][0]


def test_compiled_run_begins_like_a_plain_one(prepared: Path, tmp_path: Path) -> None:
    if problem := missing_for_compile(DEVICE.type == "cuda"):
        pytest.skip(f"this machine {problem}")
    for compiled in (False, True):
        compute = ComputeSettings(compile=compiled, precision="fp32")
        train(prepared, tmp_path / str(compiled), epochs=1, compute=compute)
    plain, fast = (metrics(tmp_path / name)[0]["loss"] for name in ("False", "True"))
    assert fast == pytest.approx(plain, rel=0.02)


# What a step waits for


@pytest.fixture
def without_synchronisation() -> Iterator[None]:
    """An operation that waits for the GPU raises an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.only_on_gpus
def test_a_step_waits_for_no_result(batch: loader.Batch, without_synchronisation: None) -> None:
    settings = SETTINGS.model_copy(update={"optim": OptimSettings(lr=1e-3, ema_decay=0.9, clip_norm=1.0)})
    learner = Learner(build_network(MODEL), DEVICE, settings)
    for _ in range(3):
        learner(batch, 1e-3)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    losses = [learner(batch, 1e-3) for _ in range(3)]
    torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


def test_moving_average_equals_that_of_a_cpu() -> None:
    torch.manual_seed(0)
    on_cpu = build_network(MODEL)
    on_device = build_network(MODEL)
    on_device.load_state_dict(on_cpu.state_dict())
    on_device.to(DEVICE)
    averages = [WeightAverage(model, 0.9) for model in (on_cpu, on_device)]
    for _ in range(5):
        for model, average in zip((on_cpu, on_device), averages, strict=True):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.01)
            average.update(model)
    expected, result = (average.module.state_dict() for average in averages)
    for name, value in expected.items():
        torch.testing.assert_close(result[name].cpu(), value)


@pytest.mark.only_on_gpus
def test_reading_batches_for_a_cpu_opens_no_context(prepared: Path) -> None:
    code = (
        "import sys, torch; from lungseg.dataset import catalog;"
        "from lungseg.dataset.sample_reader import SampleReader;"
        "from lungseg.training import loader; from lungseg.training.study_data import open_training_data;"
        "reader = SampleReader(open_training_data(catalog.find_datasets([sys.argv[1]])), 64);"
        "(batch,) = loader.load_batches(reader, [loader.Step((0, 1), 2)], 2);"
        "assert not batch.images.is_pinned() and not torch.cuda.is_initialized();"
        "assert not torch._C._cuda_hasPrimaryContext(0)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(prepared)], check=False, timeout=200)
    assert result.returncode == 0


# Memory


@pytest.mark.only_on_gpus
def test_too_little_memory_names_the_setting_to_lower(prepared: Path, tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(DEVICE) + 2**26) / total, DEVICE)
    try:
        with pytest.raises(SettingsError, match="the GPU has too little memory for 2 images a rank: pass another"):
            train(prepared, tmp_path / "run", model=MODEL.model_copy(update={"encoder": "resnet50"}))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)


# Inference


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 0.01), ("auto", 0.05)])
def test_inference_equals_that_of_a_cpu(
    precision: Any, bound: float, trained: tuple[Path, dict[str, Any]], prepared: Path
) -> None:
    """Largest difference of a probability: 0.01 in fp32 (with TF32), 0.05 in bf16 or fp16; masks equal to 99.5 %."""
    saved = checkpoint.find_all(str(trained[0]))[0]
    reader = SampleReader(open_training_data(catalog.find_datasets([str(prepared)])), 64)
    squares = [reader.read(position).image for position in range(8)]
    expected = Predictor(saved, PredictOptions("cpu")).probabilities(squares)
    result = Predictor(saved, PredictOptions(str(DEVICE), precision=precision)).probabilities(squares)
    assert float(np.abs(result - expected).max()) < bound
    assert float(((result >= 0.5) == (expected >= 0.5)).mean()) > 0.995


def test_settings_of_these_tests_are_valid() -> None:
    assert TrainSettings.model_validate(SETTINGS.model_dump()) == SETTINGS
