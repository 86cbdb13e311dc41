"""Settings of every job: frozen pydantic models, validated on construction. Recipes are in recipes.py.

Nothing here imports numpy, torch or ray, so that `--help` is fast.
"""

from lungseg.config.adapt import AdaptSettings
from lungseg.config.augment import AugmentSettings
from lungseg.config.backend import Backend
from lungseg.config.bench import BenchSettings
from lungseg.config.export import ExportFormat, ExportSettings
from lungseg.config.infer import InferSettings, PostprocessSettings, Tta
from lungseg.config.precision import Precision
from lungseg.config.prepare import ListingColumns, OddMasks, PrepareSettings
from lungseg.config.report import ReportSettings
from lungseg.config.shared import AllowedCode, JobSettings, PreprocessSettings, Settings
from lungseg.config.train import (
    ComputeSettings,
    LoaderSettings,
    LossSettings,
    ModelSettings,
    OptimSettings,
    Protocol,
    TrainSettings,
    WandbSettings,
)

__all__ = [
    "AdaptSettings",
    "AllowedCode",
    "AugmentSettings",
    "Backend",
    "BenchSettings",
    "ComputeSettings",
    "ExportFormat",
    "ExportSettings",
    "InferSettings",
    "JobSettings",
    "ListingColumns",
    "LoaderSettings",
    "LossSettings",
    "ModelSettings",
    "OddMasks",
    "OptimSettings",
    "PostprocessSettings",
    "Precision",
    "PrepareSettings",
    "PreprocessSettings",
    "Protocol",
    "ReportSettings",
    "Settings",
    "TrainSettings",
    "Tta",
    "WandbSettings",
]
