"""`lungseg export-model --format onnx|openvino`: write a model as a file that needs no torch, if it keeps its masks."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lungseg import storage
from lungseg.errors import CheckpointError, SettingsError
from lungseg.inference.backends import RUNTIMES, Runtime, is_installed, open_network, require_installed
from lungseg.inference.backends.export_gate import (
    MAX_CHANGED,
    MAX_LOSS,
    MAX_MEAN_LOSS,
    ExportGate,
    Verdict,
    list_images,
    spread,
)
from lungseg.inference.backends.selection import seconds_of
from lungseg.inference.items import Item, open_item
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.model_card import ModelCard
from lungseg.model.onnx_cache import describe_onnx
from lungseg.model.onnx_file import SUFFIX as ONNX_SUFFIX, Check, OnnxFile
from lungseg.model.openvino_file import SUFFIX as OPENVINO_SUFFIX, weights_path, write_openvino
from lungseg.model.sources import model_name
from lungseg.plurals import counted

logger = logging.getLogger(__name__)

GraphFormat = Literal["onnx", "openvino"]
_SUFFIXES: dict[GraphFormat, str] = {"onnx": ONNX_SUFFIX, "openvino": OPENVINO_SUFFIX}
_BACKENDS: dict[GraphFormat, Runtime] = {"onnx": "onnxruntime", "openvino": "openvino"}
_FEW_IMAGES, _MAX_IMAGES = 20, 200  # of the gate
_MAX_READ = 2000  # images among which --int8 looks for those of the training


@dataclass(frozen=True)
class GraphExport:
    """What to export. out: file. images: archive for the gate and the calibration."""

    out: str
    format: GraphFormat
    images: str
    int8: bool = False
    custom_network: str = ""

    @property
    def report(self) -> str:
        """File of the gate's report."""
        return f"{self.out[: -len(_SUFFIXES[self.format])]}.gate.json"

    @property
    def runtimes(self) -> list[Runtime]:
        """Installed backends that can run the file, that of the format first."""
        first = _BACKENDS[self.format]
        others = [name for name in RUNTIMES if self.format == "onnx" and name != first and is_installed(name)]
        return [first, *others]


def export_graph_file(source: Checkpoint, card: ModelCard, export: GraphExport) -> None:
    """Export a model, and write the report of the gate, also if it refuses the model.

    Raises:
        SettingsError: an option is missing, or the backend of the format is not installed.
        CheckpointError: the network cannot be converted, or its masks change too much.
        InputError: the images cannot be used.

    """
    _require_options(export)
    from lungseg.model.onnx_export import export_graph  # imports torch

    items = list_images(export.images, source, _MAX_READ if export.int8 else _MAX_IMAGES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graph, metadata = (
            export_graph(source, export.custom_network),
            describe_onnx(source) | {"card": card.model_dump()},
        )
        if export.int8:
            graph, metadata, items = _to_int8(graph, metadata, source, items, export, folder)
        path = folder / f"model{_SUFFIXES[export.format]}"
        _write(path, OnnxFile(graph, metadata))
        gate = ExportGate(source, items, export.custom_network)
        verdicts = [gate.judge(str(path), runtime) for runtime in export.runtimes]
        _warn_of_few_images(verdicts[0].images, len(items))
        if not verdicts[0].problem:
            checks = measure_checks(path, verdicts, source, items)
            _write(path, OnnxFile(graph, metadata | {"checks": checks}))
        _finish(path, source, verdicts, export)


def _warn_of_few_images(compared: int, given: int) -> None:
    if not compared:  # the file itself is refused
        return
    if compared < given:
        logger.warning("%d of %s could not be used for the comparison", given - compared, counted(given, "X-ray"))
    if compared < _FEW_IMAGES:
        logger.warning("the comparison is of %s only: pass more with --images", counted(compared, "X-ray"))


def _require_options(export: GraphExport) -> None:
    """Check the options before anything is computed.

    Raises:
        SettingsError: one is missing or does not fit.

    """
    suffix = _SUFFIXES[export.format]
    if not export.out.endswith(suffix):
        raise SettingsError(f"-o {export.out}: expected a file that ends in {suffix}")
    if not export.images:
        raise SettingsError(
            "pass --images FOLDER: real X-rays, on which the masks of the file are compared with those of torch"
        )
    require_installed(_BACKENDS[export.format])


def _to_int8(
    graph: bytes, metadata: dict[str, Any], source: Checkpoint, items: list[Item], export: GraphExport, folder: Path
) -> tuple[bytes, dict[str, Any], list[Item]]:
    """Return the graph in int8, its metadata, and the images for the gate: those that were not trained on, if any."""
    from lungseg.inference.backends.int8 import divide_items, quantise

    divided = divide_items(items, source)
    if not divided.others:
        logger.warning("the model was trained on all X-rays of --images: int8 may lose more accuracy on other images")
    work = folder / "int8"
    work.mkdir()
    graph, made = quantise(graph, source, divided.training, work, export.custom_network)
    own = {"digests": {"model.safetensors": storage.digest_bytes(graph)}, "run": f"{model_name([source])}-int8"}
    config = metadata["config"] | own
    changes = {"precision": "int8", "int8": made, "source": source.digest, "config": config}
    return graph, metadata | changes, spread(divided.others or divided.training, _MAX_IMAGES)


def _write(path: Path, file: OnnxFile) -> None:
    if path.suffix == ONNX_SUFFIX:
        path.write_bytes(file.encode())
        return
    graph = path.with_suffix(ONNX_SUFFIX)
    graph.write_bytes(file.graph)
    write_openvino(str(graph), str(path), file.metadata)


def measure_checks(
    path: Path, verdicts: Sequence[Verdict], source: Checkpoint, items: Sequence[Item]
) -> dict[str, Any]:
    """Return the comparisons for the metadata, with the time for an image in each backend."""
    squares = (open_item(item, source.preprocess).square for item in items)
    square = next(square for square in squares if square is not None)
    images = np.stack([square, square])[:, None]
    passed = [verdict for verdict in verdicts if not verdict.problem]
    return {
        verdict.backend: Check(
            changed=verdict.changed, passed=True, seconds=seconds_of(open_network(str(path), verdict.backend), images)
        ).model_dump()
        for verdict in passed
    }


def _finish(path: Path, source: Checkpoint, verdicts: Sequence[Verdict], export: GraphExport) -> None:
    """Write the report and, if the gate lets it through, the file.

    Raises:
        CheckpointError: the gate refuses it.

    """
    limits = {"changed": MAX_CHANGED} if not export.int8 else {"mean_loss": MAX_MEAN_LOSS, "loss_of_an_image": MAX_LOSS}
    report = {
        "file": storage.name_of(export.out),
        "sha256": storage.digest_bytes(path.read_bytes()),
        "source": source.digest,
        "precision": "int8" if export.int8 else "fp32",
        "passed": not verdicts[0].problem,
        "limits": limits,
        "verdicts": [verdict.as_json() for verdict in verdicts],
    }
    storage.write_json(export.report, report)
    if verdicts[0].problem:
        raise CheckpointError(f"{source.folder}: not exported: {verdicts[0].problem}; {export.report} has the figures")
    if export.format == "openvino":
        weights = Path(weights_path(str(path)))
        storage.write_bytes(weights_path(export.out), weights.read_bytes())
    storage.write_bytes(export.out, path.read_bytes())
    logger.info("wrote %s: %s", export.out, _summary(verdicts[0]))


def _summary(verdict: Verdict) -> str:
    kinds = f"the masks of {counted(verdict.images, 'X-ray')}"
    if verdict.classes:
        name = max(verdict.classes, key=lambda one: verdict.classes[one].changed)
        kinds += f" and the class {name}, the most of {counted(len(verdict.classes), 'class', 'classes')},"
    text = f"{verdict.changed:.4%} of the pixels of {kinds} differ from torch"
    if verdict.dice is not None and verdict.torch_dice is not None:
        text += f", mean Dice {verdict.dice:.4f} instead of {verdict.torch_dice:.4f}"
    return text
