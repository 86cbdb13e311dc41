"""The named recipes of every job, and the one way from a command line to settings."""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from lungseg.config import (
    AdaptSettings,
    AugmentSettings,
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
from lungseg.errors import SettingsError

Job = Literal["prepare", "train", "adapt", "infer", "export", "report"]

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
_DEMO_OPTIM = OptimSettings(lr=3e-3, weight_decay=1e-2, schedule="one-cycle")
_SMALL_OPTIM = OptimSettings(lr=1e-3, weight_decay=1e-2, schedule="one-cycle", clip_norm=1.0, ema_decay=0.99)
_LITE0 = ModelSettings(encoder="tu-tf_efficientnet_lite0")

Recipes = Mapping[str, tuple[str, JobSettings]]

PREPARE: Recipes = {
    "demo": (
        "Phantoms in two scanner styles (or --source FOLDER) at 128 px, in seconds on two cores.",
        PrepareSettings(out="demo/data", preprocess=PreprocessSettings(size=128), images_per_shard=64, phantoms=80),
    ),
    "archive": (
        "512 px, the whole picture padded: any archive; pass --source, --images or --listing.",
        PrepareSettings(),
    ),
    "small": (
        "256 px, the whole picture padded: for light encoders and CPUs.",
        PrepareSettings(preprocess=PreprocessSettings(size=256)),
    ),
    "paper": (
        "512 px, resized and centre-cropped, histogram equalised: the reference project's preparation.",
        PrepareSettings(preprocess=PreprocessSettings(size=512, geometry="crop", histogram="equalize")),
    ),
}

TRAIN: Recipes = {
    "demo": (
        "Fold 0 pooled and source-to-source, EfficientNet-Lite0, two workers, minutes on two cores; draws phantoms "
        "when --data is not named.",
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
            epochs=10,
            workers_per_run=2,
            phantoms=80,
        ),
    ),
    "small": (
        "EfficientNet-Lite0 for two CPU cores on real data prepared at 256 px; AdamW, one-cycle, averaged weights, "
        "augmentation.",
        TrainSettings(
            model=_LITE0,
            optim=_SMALL_OPTIM,
            augment=_AUGMENT,
            epochs=8,
        ),
    ),
    "mobile": (
        "MobileNetV2, as `small`: an encoder that every edge runtime knows.",
        TrainSettings(
            model=ModelSettings(encoder="mobilenet_v2"),
            optim=_SMALL_OPTIM,
            augment=_AUGMENT,
            epochs=8,
        ),
    ),
    "paper": (
        "The reference project as it is: DeepLabV3+ ResNet-50, ImageNet weights, 512 px, BCE + Dice, Adam at 1e-4, "
        "batch 8, 50 epochs. For GPUs; it states IoU 0.92, Dice 0.94, pixel accuracy 0.97.",
        TrainSettings(loader=LoaderSettings(batch_size=8)),
    ),
}

ADAPT: Recipes = {
    "demo": (
        "The pooled run of the demo, fitted to the pictures of one scanner style.",
        AdaptSettings(checkpoint=("demo/runs/demo",), data=("demo/data/phantom-montgomery",), out="demo/adapted"),
    ),
    "archive": ("Any trained runs, any prepared pictures: pass --checkpoint and --data.", AdaptSettings()),
}

INFER: Recipes = {
    "demo": (
        "The archive and the pooled run of the demo.",
        InferSettings(
            archive="demo/data/phantoms", checkpoint=("demo/runs/demo",), out="demo/predictions", part_size=32
        ),
    ),
    "archive": ("Any archive, any trained run: pass --archive and --checkpoint.", InferSettings()),
}

EXPORT: Recipes = {
    "demo": (
        "Masks and overlays of the demo's predictions.",
        ExportSettings(predictions="demo/predictions", out="demo/export", formats=("masks", "overlays")),
    ),
    "archive": ("Any predictions: pass --predictions and --formats.", ExportSettings()),
}

REPORT: Recipes = {
    "demo": (
        "The study and the predictions of the demo.",
        ReportSettings(study="demo/runs/demo", predictions="demo/predictions", out="demo/report"),
    ),
    "study": ("Any study: pass --study, and --predictions where there are some.", ReportSettings()),
}

RECIPES: Mapping[Job, Recipes] = {
    "prepare": PREPARE,
    "train": TRAIN,
    "adapt": ADAPT,
    "infer": INFER,
    "export": EXPORT,
    "report": REPORT,
}


def parse(job: Job, args: Sequence[str]) -> JobSettings:
    """Turn a job's command line, `[RECIPE] [--section.option value ...]`, into its settings.

    The recipe is `demo` when none is named. `--help` prints and exits with 0.

    Raises:
        SettingsError: an unknown recipe or option, or a value that cannot be; one or two lines.

    """
    import tyro

    words = list(args)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "demo")
    if not words[0].startswith("-") and words[0] not in RECIPES[job]:
        raise SettingsError(f"jobs/{job}.py has no recipe {words[0]!r}: pass one of {', '.join(RECIPES[job])}")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.extras.overridable_config_cli(
                dict(RECIPES[job]), prog=f"jobs/{job}.py", args=words, config=(tyro.conf.AvoidSubcommands,)
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise SettingsError(f"{_condense(complaint.getvalue())}; see jobs/{job}.py {words[0]} --help") from None


_BAD_VALUE = re.compile(
    r"Error parsing (?P<where>\S+): \d+ validation errors? for \w+ (?P<first>[a-z]\w*(\.[a-z]\w*)*)(\.\d+)? "
    r"(?P<what>.+?) \[type=.*?input_value=(?P<value>.*?), input_type=\w+\]"
)


# Of a word or a number pydantic says twice what it should have been; the number says more.
_NEITHER = re.compile(r" (?P<field>\w+)\.literal\[\S+\] .*?input_type=\w+\] (?P=field)\.constrained-\w+ ")
_NO_NUMBER = re.compile(
    r"Error parsing (?P<option>--\S+): (?P<what>invalid literal for int\(\) with base 10|"
    r"could not convert string to float): (?P<value>'.*?')"
)
_NO_KIND = re.compile(
    r"Error parsing (?P<option>--\S+): no type matching (?P<kinds>\S+) could be instantiated from "
    r"\[(?P<value>.*?)\]\..*"
)
_KINDS = {"INT": "a whole number", "FLOAT": "a number", "STR": "text"}


def _name_number(found: re.Match[str]) -> str:
    """Say `--part 'x': expected a whole number` for what Python says of the text."""
    kind = "INT" if "int()" in found["what"] else "FLOAT"
    return f"{found['option']} {found['value']}: expected {_KINDS[kind]}"


def _name_kinds(found: re.Match[str]) -> str:
    """Say `--workers 'x': expected auto or a whole number` for what tyro says of all types that it tried."""
    kinds = [_KINDS.get(kind, kind.strip("{}").replace(",", " or ")) for kind in found["kinds"].split("|")]
    return f"{found['option']} {found['value']}: expected {' or '.join(kinds)}"


def _name_option(found: re.Match[str]) -> str:
    """Say `--optim.lr -1.0: input should be greater than 0` for what pydantic says of section and field."""
    sections = found["where"].split(".")[1:]
    option = ".".join([*sections, found["first"]]).replace("_", "-")
    return f"--{option} {found['value']}: {found['what'][0].lower()}{found['what'][1:]}"


def _condense(box: str) -> str:
    """Bring tyro's framed complaint down to what was wrong and, where there is one, the near option."""
    lines = [line.strip(" │\n") for line in box.splitlines() if line.startswith("│")]
    rule = next((i for i, line in enumerate(lines) if line.startswith("──")), len(lines))
    said = " ".join(lines[:rule])
    said = re.sub(r"\s*For further information visit \S+", "", said)
    said = re.sub(_NEITHER, r" \g<field> ", said)
    for pattern, name in ((_BAD_VALUE, _name_option), (_NO_NUMBER, _name_number), (_NO_KIND, _name_kinds)):
        said = re.sub(pattern, name, said)
    said = re.sub(r"\s*\[type=.*?input_type=\w+\]", "", said)
    said = re.sub(r"Error parsing \S+: \d+ validation errors? for \w+ (Value error, )?", "", said).rstrip(".")
    near = [line for line in lines[rule:] if line.startswith("--")]
    unknown = said.startswith("Unrecognized options")
    return f"{said}; perhaps you meant {near[0]}" if near and unknown else said
