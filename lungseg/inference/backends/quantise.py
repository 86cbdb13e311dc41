"""Quantise an ONNX graph to int8 after training, with the layers that lose most kept in float."""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from lungseg.arrays import F32, U8
from lungseg.errors import CheckpointError
from lungseg.inference.backends.onnxruntime_network import OnnxRuntimeNetwork
from lungseg.model.onnx_file import INPUT
from lungseg.plurals import counted

logger = logging.getLogger(__name__)

_KEPT = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)  # convolutions that stay in float, tried in this order
_TRIAL_IMAGES = 4  # for the loss of each convolution alone
# What stands between the convolutions stays in int8 too. Otherwise each operator would convert to float and back, and
# the ranges would be those before the activations.
_ACTIVATIONS = ("Clip", "Relu")
_QUANTISED = ["Conv", *_ACTIVATIONS, "MaxPool", "Add", "Concat", "Resize"]


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Gives images u8[N,1,S,S] one by one."""

    def __init__(self, images: U8) -> None:
        self._images: Iterator[U8] = iter(images)

    def get_next(self) -> dict[str, U8] | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: image[None]}


class Quantiser:
    """Quantises a graph: activations u8, weights s8 for each channel, ranges from images."""

    def __init__(self, graph: bytes, images: U8, folder: Path, threads: int) -> None:
        """Prepare a graph. images: u8[N,1,S,S] to calibrate on. folder: for files, empty."""
        self._images, self._folder, self._threads = images, folder, threads
        self._fused = folder / "fused.onnx"
        (folder / "float.onnx").write_bytes(graph)
        quant_pre_process(folder / "float.onnx", self._fused, skip_symbolic_shape=True)
        self._nodes = list(onnx.load(self._fused).graph.node)
        self._names = [node.name for node in self._nodes if node.op_type == "Conv"]
        self._build([])  # measures the ranges, which the following builds read from a file

    def quantise(self, is_close: Callable[[Path], bool]) -> tuple[bytes, tuple[str, ...]]:
        """Return the graph, and the convolutions in float: as few of the most sensitive ones as `is_close` accepts.

        Raises:
            CheckpointError: it accepts none.

        """
        for count in _KEPT:
            kept = self._by_loss[:count] if count else []
            path = self._build(kept)
            if is_close(path):
                return path.read_bytes(), tuple(kept)
            logger.info("int8 with %s in float changes the masks too much", counted(count, "convolution"))
        raise CheckpointError(
            f"int8 changes the masks too much, even with {_KEPT[-1]} of {len(self._names)} convolutions in float: "
            "export the model without --int8"
        )

    @functools.cached_property
    def _by_loss(self) -> list[str]:
        """Sort the convolutions: first the one that changes probabilities most when only it is quantised."""
        logger.info("measuring the loss of each of %d convolutions", len(self._names))
        expected = self._run(self._fused)
        losses: dict[str, float] = {}
        for name in self._names:
            path = self._build(self._others(name))
            losses[name] = float(np.square(self._run(path) - expected).mean())
        return sorted(self._names, key=lambda name: -losses[name])

    def _others(self, name: str) -> list[str]:
        """List the nodes other than a convolution and its activation."""
        outputs = {output for node in self._nodes if node.name == name for output in node.output}
        activations = {
            node.name for node in self._nodes if node.op_type in _ACTIVATIONS and outputs.intersection(node.input)
        }
        return [node.name for node in self._nodes if node.name not in {name, *activations}]

    def _run(self, path: Path) -> F32:
        return OnnxRuntimeNetwork(str(path), self._threads)(self._images[:_TRIAL_IMAGES])

    def _build(self, kept: Sequence[str]) -> Path:
        """Quantise all nodes but those to keep in float."""
        path, options = self._folder / "int8.onnx", _options()
        cache = self._folder / "ranges.json"
        quantize_static(
            self._fused,
            path,
            _Calibration(self._images),
            nodes_to_exclude=list(kept),
            calibration_cache_path=cache,
            **options,
        )
        return path


def _options() -> dict[str, Any]:
    return {
        "quant_format": QuantFormat.QDQ,
        "op_types_to_quantize": _QUANTISED,
        "per_channel": True,
        # 7 bits for weights: the 16-bit sums of CPUs without VNNI would overflow.
        "reduce_range": True,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
    }
