"""Settings of `lungseg segment`, and the reader of its command line."""

import argparse
import difflib
import shutil
from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import ValidationError

from lungseg.config.backend import Backend
from lungseg.config.class_names import ONE_CLASS, lung_parts
from lungseg.config.options import describe
from lungseg.config.shared import Settings
from lungseg.errors import SettingsError

SegmentFormat = Literal["masks", "lung-masks", "class-masks", "overlays", "dicom-seg"]
SEGMENT_FORMATS: tuple[SegmentFormat, ...] = get_args(SegmentFormat)

_HELP_WIDTH = 100  # longest line of help, however wide the terminal
_MIN_SIMILARITY = 0.6  # of a suggested option, 0 to 1
_USAGE = "lungseg segment PATH... -o OUT [--model MODEL] [--formats FORMAT ...]"
_DESCRIPTION = """Segment the lungs in chest X-rays: masks, pictures with outlines, and a table,
most doubtful images first.

  lungseg segment chest.dcm -o out
  lungseg segment xrays/ more/*.png scans.zip -o out
  lungseg segment s3://hospital/xrays -o out --formats masks dicom-seg

OUT receives
  masks/               PNG, 255 is lung, in the size of the original
  overlays/            the X-rays with the outlines of the masks
  predictions.csv      a row for each image, also for those without a mask,
  predictions.parquet  with areas, doubt, flags and reasons"""
_EPILOG = """After an interruption, pass the same command again. After a finished command, it
replaces the results. More than 50 images are divided among all processors.
lungseg is research software and not a medical device."""


class SegmentSettings(Settings):
    """Segment files, and write masks, overlays and a table."""

    paths: tuple[str, ...]
    out: str
    model: str = "lungs"
    backend: Backend = "auto"
    formats: tuple[SegmentFormat, ...] = ()
    """empty: as of `default_formats`"""
    include_doubtful: bool = False
    strict: bool = False


def default_formats(classes: Sequence[str]) -> tuple[SegmentFormat, ...]:
    """Return what is written for a model of these classes if the user names no format."""
    if tuple(classes) == ONE_CLASS:
        return ("masks", "overlays")
    return (*(("masks",) if lung_parts(classes) else ()), "class-masks", "overlays")


def parse_segment(words: Sequence[str]) -> SegmentSettings:
    """Return the settings of a command line.

    Raises:
        SettingsError: an unknown option, or a missing or invalid value; one line.

    """
    try:
        options, unknown = _parser().parse_known_intermixed_args(words)
    except argparse.ArgumentError as error:
        raise SettingsError(f"{error.argument_name}: {error.message}; see lungseg segment --help") from None
    if unknown:
        raise SettingsError(f"unknown option {unknown[0]}{_near(unknown[0])}; see lungseg segment --help")
    try:
        settings = SegmentSettings(**vars(options))
    except ValidationError as error:
        message = describe(error, SegmentSettings.model_fields)[1]
        raise SettingsError(f"{message}; paths come before the options; see lungseg segment --help") from None
    if not settings.paths:
        raise SettingsError("no X-ray named: pass files, folders or zip archives, as in lungseg segment xrays/ -o out")
    if not settings.out:
        raise SettingsError("no output folder named: pass -o OUT")
    return settings


def segment_help() -> str:
    """Return the text of `lungseg segment --help`."""
    return _parser().format_help()


def segment_options() -> list[str]:
    """List the options of the command line."""
    return [name for action in _parser()._actions for name in action.option_strings if name.startswith("--")]


def _near(word: str) -> str:
    near = difflib.get_close_matches(word.split("=", maxsplit=1)[0], segment_options(), 1, _MIN_SIMILARITY)
    return f": did you mean {near[0]}?" if near else ""


def _parser() -> argparse.ArgumentParser:
    width = min(shutil.get_terminal_size().columns - 2, _HELP_WIDTH)
    parser = argparse.ArgumentParser(
        prog="lungseg segment",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=width),
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="X-rays as PNG, JPEG, TIFF, DICOM, ...; folders, zip archives, patterns such as 'a*.png', s3:// and gs://",
    )
    parser.add_argument("-o", "--out", default="", metavar="OUT", help="output folder")
    parser.add_argument(
        "--model",
        default="lungs",
        help="an installed model, the folder of a trained run or study, an ONNX file, or an address (default: lungs)",
    )
    parser.add_argument(
        "--backend",
        default="auto",
        help="library that computes the network: torch, onnxruntime, openvino; default: auto, the fastest installed",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        default=(),
        metavar="FORMAT",
        help="what to write: masks, lung-masks (right and left on their own), class-masks (each class of the model), "
        "overlays, dicom-seg (of DICOM images); default: masks overlays, of several classes also class-masks",
    )
    parser.add_argument(
        "--include-doubtful",
        action="store_true",
        help="write dicom-seg also for images that flags question, or whose doubt is unusual among all images",
    )
    parser.add_argument("--strict", action="store_true", help="exit status 1 if any image has no mask")
    parser.add_argument("-h", "--help", action="store_true", default=argparse.SUPPRESS, help="print this text and exit")
    return parser
