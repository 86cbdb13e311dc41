"""The ONNX files of checkpoints: shipped with the model, or exported once and kept in the cache."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lungseg import __version__, storage
from lungseg.errors import CheckpointError, InputError
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.custom_code import NETWORK, source_digest
from lungseg.model.graph_file import is_graph, read_metadata
from lungseg.model.model_card import read_card
from lungseg.model.onnx_file import INPUT, ONNX_FORMAT, OUTPUT, Check, OnnxFile, read_onnx
from lungseg.model.shared_config import shared_config
from lungseg.model.sources import cache_folder
from lungseg.versions import versions

_LIBRARIES = ("torch", "segmentation-models-pytorch", "onnxruntime", "openvino")
logger = logging.getLogger(__name__)

_CONVERSION = 2  # raise it if `export_graph` writes other graphs, so that cached files are made again
SHIPPED = "model.onnx"
"""Name of the graph in the folder of an installed model; its weights are those of model.safetensors beside it."""


@dataclass(frozen=True)
class CachedOnnx:
    """The graph file of a checkpoint. is_own: it lies in the cache, and checks can be added to it."""

    path: str
    file: OnnxFile
    is_own: bool

    @property
    def checks(self) -> dict[str, Check]:
        """Return the comparisons with torch by the name of the backend."""
        return {name: Check(**values) for name, values in self.file.metadata["checks"].items()}

    def add_checks(self, checks: dict[str, Check]) -> "CachedOnnx":
        """Return the file with more comparisons, and write it again if it lies in the cache."""
        known = self.file.metadata["checks"] | {name: check.model_dump() for name, check in checks.items()}
        changed = OnnxFile(self.file.graph, {**self.file.metadata, "checks": known})
        if self.is_own:
            storage.write_bytes(self.path, changed.encode())
        return CachedOnnx(self.path, changed, self.is_own)


def is_converted(checkpoint: Checkpoint, custom_network: str = "") -> bool:
    """Return whether there is a graph file of a checkpoint, so that `find_or_export` need not export it."""
    if is_graph(checkpoint.folder):
        return True
    shipped = storage.join(checkpoint.folder, SHIPPED)
    return any(Path(path).is_file() for path in (shipped, _cached_path(checkpoint, custom_network)))


def find_or_export(checkpoint: Checkpoint, custom_network: str = "") -> CachedOnnx:
    """Return the graph file of a checkpoint; the first call for a checkpoint exports it, which takes seconds.

    Raises:
        CheckpointError: the network cannot be converted, or a graph file that the user named is damaged.

    """
    if is_graph(checkpoint.folder):
        return CachedOnnx(checkpoint.folder, OnnxFile(b"", read_metadata(checkpoint.folder)), is_own=False)
    shipped = storage.join(checkpoint.folder, SHIPPED)
    if "://" not in shipped and (file := _read(shipped, checkpoint)):
        return CachedOnnx(shipped, file, is_own=False)
    _require_torch(checkpoint)
    path = _cached_path(checkpoint, custom_network)
    if file := _read(path, checkpoint):
        return CachedOnnx(path, file, is_own=True)
    from lungseg.model.onnx_export import export_graph  # imports torch

    logger.info("%s: converting the model to ONNX, once", checkpoint.folder)
    file = OnnxFile(export_graph(checkpoint, custom_network), describe_onnx(checkpoint))
    storage.write_bytes(path, file.encode())
    return CachedOnnx(path, file, is_own=True)


def describe_onnx(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the metadata of the ONNX file of a checkpoint, without any check."""
    size, classes = checkpoint.preprocess.size, list(checkpoint.preprocess.classes)
    config = shared_config(checkpoint, _weights_digest(checkpoint))
    config["settings"]["model"]["custom"] = ""  # the graph replaces the user's code
    return {
        "onnx_format": ONNX_FORMAT,
        "lungseg_version": __version__,
        "precision": "fp32",
        "input": {"name": INPUT, "type": "u8", "shape": ["batch", 1, size, size]},
        "output": {"name": OUTPUT, "type": "f32", "shape": ["batch", len(classes), size, size], "classes": classes},
        "card": read_card(checkpoint.folder).model_dump(),
        "config": config,
        "checks": {},
    }


def _read(path: str, checkpoint: Checkpoint) -> OnnxFile | None:
    """Read a file of the cache or the package; None where it is missing, damaged, or of other weights."""
    if not Path(path).is_file():
        return None
    try:
        file = read_onnx(path)
    except (CheckpointError, InputError) as error:
        logger.warning("%s; converting the model again", error)
        return None
    is_same = file.metadata["config"].get("digests") == {"model.safetensors": _weights_digest(checkpoint)}
    has_size = file.metadata["config"]["preprocess"]["size"] == checkpoint.preprocess.size
    return file if is_same and has_size else None


def _require_torch(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint can be converted here.

    Raises:
        CheckpointError: torch is not installed.

    """
    if importlib.util.find_spec("torch") is None:
        raise CheckpointError(
            f"{checkpoint.folder}: this installation has no torch, which its weights need: write an ONNX file with "
            "lungseg export-model --format onnx in a complete installation, and pass that file"
        )


def _weights_digest(checkpoint: Checkpoint) -> str:
    return str(checkpoint.config["digests"]["model.safetensors"])


def _cached_path(checkpoint: Checkpoint, custom_network: str) -> str:
    identity = [
        ONNX_FORMAT,
        _CONVERSION,
        _weights_digest(checkpoint),
        checkpoint.preprocess.size,
        source_digest(NETWORK, custom_network) if custom_network else "",
        # Another version of a backend is compared with torch again.
        versions(name for name in _LIBRARIES if importlib.util.find_spec(name.replace("-", "_"))),
    ]
    return str(cache_folder() / "onnx" / f"{storage.digest(identity)}.onnx")
