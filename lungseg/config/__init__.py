"""Settings of every job: frozen pydantic models, validated on construction. Recipes are in recipes.py.

Nothing here imports numpy, torch or ray, so that `--help` is fast. The classes of a job are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lungseg.config.adapt import AdaptSettings
    from lungseg.config.augment import AugmentSettings
    from lungseg.config.backend import Backend
    from lungseg.config.bench import BenchSettings
    from lungseg.config.export import ExportFormat, ExportSettings
    from lungseg.config.infer import InferSettings, PostprocessSettings, Tta
    from lungseg.config.loader import LoaderSettings
    from lungseg.config.precision import Precision
    from lungseg.config.prepare import ListingColumns, OddMasks, PrepareSettings
    from lungseg.config.report import ReportSettings
    from lungseg.config.shared import AllowedCode, JobSettings, PreprocessSettings, Settings
    from lungseg.config.train import (
        ComputeSettings,
        LossSettings,
        ModelSettings,
        OptimSettings,
        Protocol,
        TrainSettings,
        WandbSettings,
    )

_NAMES = {
    "adapt": ("AdaptSettings",),
    "augment": ("AugmentSettings",),
    "backend": ("Backend",),
    "bench": ("BenchSettings",),
    "export": ("ExportFormat", "ExportSettings"),
    "infer": ("InferSettings", "PostprocessSettings", "Tta"),
    "loader": ("LoaderSettings",),
    "precision": ("Precision",),
    "prepare": ("ListingColumns", "OddMasks", "PrepareSettings"),
    "report": ("ReportSettings",),
    "shared": ("AllowedCode", "JobSettings", "PreprocessSettings", "Settings"),
    "train": (
        "ComputeSettings",
        "LossSettings",
        "ModelSettings",
        "OptimSettings",
        "Protocol",
        "TrainSettings",
        "WandbSettings",
    ),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
