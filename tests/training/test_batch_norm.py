"""Which statistics batch norm uses, and that ranks which may be lost never wait for each other in it."""

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from timm.layers import norm_act
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lungseg.config import ComputeSettings, LoaderSettings, ModelSettings, TrainSettings
from lungseg.errors import ResourceError
from lungseg.model.network import build_network
from lungseg.training.batch_norm import resolve_batch_norm, with_batch_norm


def settings(mode: Any, ranks: int, images: int = 8, min_workers: int = 0) -> TrainSettings:
    return TrainSettings(
        compute=ComputeSettings(batch_norm=mode),
        loader=LoaderSettings(batch_size=images),
        workers_per_run=ranks,
        min_workers=min_workers,
    )


@pytest.mark.parametrize(
    ("ranks", "images", "min_workers", "expected"),
    [
        (1, 2, 0, "local"),
        (8, 8, 0, "local"),
        (8, 7, 0, "sync"),
        (8, 2, 8, "sync"),
        (8, 2, 7, "local"),  # 7 of 8 ranks would take unequal numbers of passes
    ],
)
def test_auto_follows_the_images_of_a_rank(ranks: int, images: int, min_workers: int, expected: str) -> None:
    requested = settings("auto", ranks, images, min_workers)
    assert resolve_batch_norm(requested, on_gpus=True) == expected
    assert resolve_batch_norm(requested, on_gpus=False) == "local"


@pytest.mark.parametrize("mode", ["local", "frozen"])
def test_a_requested_mode_is_kept(mode: str) -> None:
    for on_gpus in (False, True):
        assert resolve_batch_norm(settings(mode, 8, 2, 4), on_gpus) == mode
    assert resolve_batch_norm(settings("sync", 8, 16), on_gpus=True) == "sync"


@pytest.mark.parametrize(("ranks", "on_gpus"), [(1, True), (2, False)])
def test_synchronised_statistics_need_several_gpus(ranks: int, on_gpus: bool) -> None:
    with pytest.raises(ResourceError, match="sync needs several GPUs: pass auto, local or frozen"):
        resolve_batch_norm(settings("sync", ranks), on_gpus)


@pytest.mark.parametrize("ranks", [4, "auto"])
def test_synchronised_statistics_are_refused_where_ranks_may_be_lost(ranks: Any) -> None:
    """With fewer ranks than planned, some take more forward passes than others, and each pass waits for all."""
    message = "--min-workers 3 with --compute.batch-norm sync: fewer ranks cannot compute the statistics of all"
    with pytest.raises(ValidationError, match=message):
        settings("sync", ranks, min_workers=3)
    assert settings("sync", 4, min_workers=4).min_workers == 4


def test_synchronising_keeps_the_network_function() -> None:
    """torch's own conversion would drop the activation of timm's batch norm."""
    torch.manual_seed(0)
    model = build_network(ModelSettings(encoder="tu-test_efficientnet", weights="none")).train()
    model(torch.rand(4, 1, 64, 64))
    model.eval()
    assert any(isinstance(module, norm_act.BatchNormAct2d) for module in model.modules())
    images, names = torch.rand(2, 1, 64, 64), list(model.state_dict())
    with torch.inference_mode():
        expected = model(images)
    converted = with_batch_norm(copy.deepcopy(model), "sync")
    norms = [module for module in converted.modules() if isinstance(module, _BatchNorm)]
    assert all(isinstance(module, nn.SyncBatchNorm) for module in norms)
    assert list(converted.state_dict()) == names
    with torch.inference_mode():
        assert torch.equal(converted(images), expected)
    assert with_batch_norm(model, "local") is with_batch_norm(model, "frozen") is model
