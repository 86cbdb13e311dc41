"""The named recipes of every job."""

from collections.abc import Mapping
from typing import Literal

from lungseg.config import (
    AdaptSettings,
    AugmentSettings,
    BenchSettings,
    ExportSettings,
    InferSettings,
    JobSettings,
    LoaderSettings,
    ModelSettings,
    OptimSettings,
    PrepareSettings,
    PreprocessSettings,
    ReportSettings,
    TrainSettings,
)

Job = Literal["prepare", "train", "adapt", "infer", "export", "report", "bench"]

_AUGMENT = AugmentSettings(
    rotate_deg=8.0,
    scale=0.12,
    shift=0.04,
    elastic=0.01,
    flip=0.5,
    gamma=0.3,
    contrast=0.2,
    brightness=0.1,
    jitter=0.3,
    shadow=0.2,
    blur=0.7,
    noise=0.02,
    collimate=0.1,
)
# Made for other hospitals and for disease: stronger changes of grey levels and size, painted opacities and gas.
_STRONG_AUGMENT = _AUGMENT.model_copy(
    update={
        "rotate_deg": 12.0,
        "scale": 0.2,
        "gamma": 0.6,
        "contrast": 0.4,
        "brightness": 0.2,
        "jitter": 0.6,
        "shadow": 0.4,
        "opacity": 0.4,
        "gas": 0.3,
    }
)
# Averaged weights: with few steps the last ones vary with the seed and the machine.
_DEMO_OPTIM = OptimSettings(lr=3e-3, weight_decay=1e-2, schedule="one-cycle", clip_norm=1.0, ema_decay=0.95)
_SMALL_OPTIM = OptimSettings(lr=1e-3, weight_decay=1e-2, schedule="one-cycle", clip_norm=1.0, ema_decay=0.99)
_LITE0 = ModelSettings(encoder="tu-tf_efficientnet_lite0")

Recipes = Mapping[str, tuple[str, JobSettings]]

PREPARE: Recipes = {
    "demo": (
        "Phantoms (synthetic X-rays) in two scanner styles, or --source FOLDER, at 128 px; seconds on two cores.",
        PrepareSettings(out="demo/data", preprocess=PreprocessSettings(size=128), images_per_shard=64, phantoms=80),
    ),
    "archive": (
        "Any archive at 512 px, the whole image padded; pass --source, --images or --listing.",
        PrepareSettings(),
    ),
    "small": (
        "As archive at 256 px, for light encoders and CPUs.",
        PrepareSettings(preprocess=PreprocessSettings(size=256)),
    ),
    "paper": (
        "The preparation of the reference project: 512 px, resized and centre-cropped, histogram equalized.",
        PrepareSettings(preprocess=PreprocessSettings(size=512, geometry="crop", histogram="equalize")),
    ),
}


def _light(network: str, model: ModelSettings) -> tuple[str, TrainSettings]:
    settings = TrainSettings(model=model, optim=_SMALL_OPTIM, augment=_AUGMENT, epochs=8)
    return f"As small {network}", settings


TRAIN: Recipes = {
    "demo": (
        "Fold 0, pooled and source-to-source, EfficientNet-Lite0, two workers; minutes on two cores. Draws phantoms "
        "without --data.",
        TrainSettings(
            out="demo/runs",
            study="demo",
            protocols=("pooled", "source-to-source"),
            folds=4,
            only_folds=(0,),
            model=_LITE0,
            optim=_DEMO_OPTIM,
            augment=_AUGMENT,
            loader=LoaderSettings(batch_size=4),
            epochs=14,
            workers_per_run=2,
            phantoms=80,
        ),
    ),
    "small": (
        "EfficientNet-Lite0 for real data prepared at 256 px, feasible on two CPU cores: AdamW, one-cycle schedule, "
        "averaged weights, augmentation.",
        TrainSettings(
            model=_LITE0,
            optim=_SMALL_OPTIM,
            augment=_AUGMENT,
            epochs=8,
        ),
    ),
    "mobile": _light(
        "with MobileNetV2, an encoder that every edge runtime supports.", ModelSettings(encoder="mobilenet_v2")
    ),
    "mobile-small": _light(
        "with MobileNetV3-small: 2.2 million parameters.", ModelSettings(encoder="tu-mobilenetv3_small_100")
    ),
    "tiny": _light(
        "with MobileNetV3-small at three quarters of its width and a narrow decoder: 0.76 million parameters.",
        ModelSettings(encoder="tu-mobilenetv3_small_075", decoder_channels=64),
    ),
    "release": (
        "The model lungs that comes with lungseg: EfficientNet-Lite0 on every image prepared at 512 px, four images a "
        "step, strong augmentation; hours on two cores. With --protocols pooled or source-to-source: the same method "
        "tested.",
        TrainSettings(
            study="release",
            protocols=("all",),
            model=_LITE0,
            optim=_SMALL_OPTIM,
            augment=_STRONG_AUGMENT,
            loader=LoaderSettings(batch_size=4),
            epochs=16,
            half_size_epochs=10,
            # Models are too cautious on X-rays of other hospitals: docs/models/lungs.md has the figures.
            threshold=0.35,
        ),
    ),
    "paper": (
        "The reference project: DeepLabV3+ with ResNet-50, ImageNet weights, 512 px, BCE + Dice, Adam at 1e-4, "
        "8 images a step on any number of GPUs, 50 epochs; needs a GPU. It reports IoU 0.92, Dice 0.94, pixel accuracy "
        "0.97.",
        TrainSettings(loader=LoaderSettings(global_batch_size=8)),
    ),
}

ADAPT: Recipes = {
    "demo": (
        "The runs of the demo, adapted to the images of one scanner style.",
        AdaptSettings(checkpoint=("demo/runs/demo",), data=("demo/data/phantom-montgomery",), out="demo/adapted"),
    ),
    "archive": ("Any trained models and prepared images; pass --checkpoint and --data.", AdaptSettings()),
}

INFER: Recipes = {
    "demo": (
        "The archive and the models of the demo.",
        InferSettings(
            archive="demo/data/phantoms", checkpoint=("demo/runs/demo",), out="demo/predictions", part_size=32
        ),
    ),
    "archive": ("Any archive and trained models; pass --archive and --checkpoint.", InferSettings()),
}

EXPORT: Recipes = {
    "demo": (
        "Masks and overlays of the demo's predictions.",
        ExportSettings(predictions="demo/predictions", out="demo/export", formats=("masks", "overlays")),
    ),
    "archive": ("Any predictions; pass --predictions and --formats.", ExportSettings()),
}

REPORT: Recipes = {
    "demo": (
        "The study and the predictions of the demo.",
        ReportSettings(study="demo/runs/demo", predictions="demo/predictions", out="demo/report"),
    ),
    "study": ("Any study, predictions or both; pass --study, --predictions.", ReportSettings()),
}


def _bench(train: str, size: int, promise: str) -> tuple[str, BenchSettings]:
    settings = TRAIN[train][1]
    assert isinstance(settings, TrainSettings)
    sections = {name: getattr(settings, name) for name in ("model", "optim", "compute", "loss", "augment", "loader")}
    return f"{promise} as the recipe {train} of lungseg train, at {size} px.", BenchSettings(size=size, **sections)


BENCH: Recipes = {
    "demo": _bench("demo", 128, "EfficientNet-Lite0,"),
    "small": _bench("small", 256, "EfficientNet-Lite0,"),
    "release": _bench("release", 512, "EfficientNet-Lite0 with strong augmentation,"),
    "paper": _bench("paper", 512, "ResNet-50 without augmentation,"),
}

RECIPES: Mapping[Job, Recipes] = {
    "prepare": PREPARE,
    "train": TRAIN,
    "adapt": ADAPT,
    "infer": INFER,
    "export": EXPORT,
    "report": REPORT,
    "bench": BENCH,
}

# The recipe of a command that names data and no recipe, and the settings that name data.
DATA_RECIPES: Mapping[Job, str] = {
    "prepare": "archive",
    "train": "small",
    "adapt": "archive",
    "infer": "archive",
    "export": "archive",
    "report": "study",
    "bench": "small",
}
DATA_OPTIONS: Mapping[Job, tuple[str, ...]] = {
    "prepare": ("source", "images", "masks", "listing"),
    "train": ("data",),
    "adapt": ("checkpoint", "data"),
    "infer": ("archive", "checkpoint"),
    "export": ("predictions",),
    "report": ("study", "predictions", "compare_with"),
    "bench": ("data", "archive"),
}
