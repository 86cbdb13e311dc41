"""`lungseg export-model`: write a trained model as a folder that others can load."""

import argparse
import logging
from collections.abc import Sequence
from typing import get_args

from lungseg import storage
from lungseg.errors import CheckpointError, SettingsError
from lungseg.model import checkpoint, sources
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.model_card import ModelCard, read_card
from lungseg.pipelines.export_graph import GraphExport, GraphFormat, export_graph_file

logger = logging.getLogger(__name__)

MAX_CHANGED = 1e-3
"""Largest share of pixels whose mask may change with the weights in fp16."""
_CARD_HELP = {
    "title": "one line about the model",
    "terms": "licence of the weights, such as CC-BY-4.0",
    "data": "what it was trained on",
    "made-by": "who trained it",
}


def run(words: Sequence[str]) -> None:
    """Export a model, and check that its masks are those of the checkpoint.

    Raises:
        LungsegError: the model cannot be used or exported, or its masks change.

    """
    options = _parser().parse_args(words)
    out, source = storage.resolve(options.out), _find_model(options.checkpoint, options.custom)
    if options.format != "folder":
        export = GraphExport(out, options.format, options.images, options.int8, options.custom)
        export_graph_file(source, _card(source, options), export)
        return
    if options.int8 or options.images:
        raise SettingsError("--int8 and --images are for --format onnx or openvino: pass one of them")
    _export_folder(source, out, options)


def _export_folder(source: Checkpoint, out: str, options: argparse.Namespace) -> None:
    from lungseg.inference.weights_comparison import changed_share
    from lungseg.model.export_model import export_model, withdraw

    export_model(source, out, _card(source, options), options.custom)
    exported = checkpoint.verify(out)
    share = changed_share(source, exported, options.custom)
    if share > MAX_CHANGED:
        withdraw(out)
        raise CheckpointError(
            f"{source.folder}: with weights in fp16, {share:.2%} of the pixels of its masks change, more than "
            f"{MAX_CHANGED:.1%}: export another model"
        )
    logger.info(
        "wrote %s, digest %s: %.1f MB; with weights in fp16, %.4f%% of the pixels of masks change",
        out,
        exported.digest,
        storage.stat(storage.join(out, "model.safetensors"))[0] / 1e6,
        100 * share,
    )
    logger.info("use it: lungseg segment PATH... -o OUT --model %s", out)


def _find_model(path: str, custom_network: str) -> Checkpoint:
    """Find the only model of a path.

    Raises:
        LungsegError: there is none, or there are several.

    """
    models = checkpoint.find_all(sources.resolve(path))
    if len(models) > 1:
        runs = ", ".join(str(model.config.get("run")) for model in models)
        raise SettingsError(f"{path} has {len(models)} models, and a folder holds one: export each run alone ({runs})")
    checkpoint.require_custom_code(models, custom_network)
    checkpoint.require_tensors(models[0])
    return models[0]


def _card(source: Checkpoint, options: argparse.Namespace) -> ModelCard:
    """Return the card of the command line; what it leaves out comes from the card of the model, if it has one."""
    given = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in _CARD_HELP}
    card = read_card(source.folder).model_dump()
    return ModelCard(**{**card, **{name: text for name, text in given.items() if text is not None}})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lungseg export-model",
        description="Write a trained model for others: a folder with fp16 weights, settings and a card; or one file in "
        "the format of ONNX or OpenVINO, which needs no torch and has the settings in its metadata.",
    )
    parser.add_argument("checkpoint", help="folder of a run, or another model")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="new folder or file, also s3://bucket/folder")
    parser.add_argument(
        "--format", choices=("folder", *get_args(GraphFormat)), default="folder", help="default: folder"
    )
    parser.add_argument("--int8", action="store_true", help="quantise to 8 bits, calibrated on images of the training")
    parser.add_argument(
        "--images", default="", metavar="ARCHIVE", help="real X-rays on which a file must keep the masks of torch"
    )
    for name, text in _CARD_HELP.items():
        parser.add_argument(f"--{name}", metavar="TEXT", help=f"card: {text}")
    parser.add_argument(
        "--model.custom", dest="custom", default="", metavar="MODULE:NAME", help="your network, if the model has one"
    )
    return parser
