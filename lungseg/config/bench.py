"""Settings of lungseg bench."""

from typing import Annotated, Literal

from pydantic import Field

from lungseg.config.augment import AugmentSettings
from lungseg.config.loader import LoaderSettings
from lungseg.config.shared import Count, JobSettings, Positive
from lungseg.config.train import (
    ComputeSettings,
    LossSettings,
    ModelSettings,
    OptimSettings,
    TrainSettings,
)


class BenchSettings(JobSettings):
    """Measure every stage of training and inference on this machine, and name the stage that limits each of them."""

    data: tuple[str, ...] = ()
    """folders of prepared datasets to train on; default: phantoms (synthetic X-rays)"""
    archive: str = ""
    """folder of X-rays to segment; some hundred are enough; default: enlarged phantoms"""
    out: str = "bench"
    """output folder; it receives bench.json and the phantoms"""
    size: Annotated[int, Field(ge=64, le=4096, multiple_of=16)] = 512
    """side of the model's input in pixels; with --data, that of the data"""
    quick: bool = False
    """measure fewer rounds; two minutes instead of five"""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """device that the model runs on; auto: the first GPU, if there is one"""
    workers_per_run: Count = "auto"
    """also measure the training step with 2, 4, ... up to this many ranks; auto: one per GPU"""
    batch_size: Positive = 16
    """images per forward pass of inference"""
    model: ModelSettings = ModelSettings()
    optim: OptimSettings = OptimSettings()
    compute: ComputeSettings = ComputeSettings()
    loss: LossSettings = LossSettings()
    augment: AugmentSettings = AugmentSettings()
    loader: LoaderSettings = LoaderSettings()

    @property
    def training(self) -> TrainSettings:
        """Settings of a training with one rank."""
        sections = ("model", "optim", "compute", "loss", "augment", "loader")
        return TrainSettings(**{name: getattr(self, name) for name in sections})
