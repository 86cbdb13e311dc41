"""The graphs of the installed models: those of their weights, with the masks of torch."""

from pathlib import Path

import numpy as np
import pytest

from lungseg.errors import CheckpointError
from lungseg.imaging import phantom
from lungseg.imaging.geometry import prepare_image
from lungseg.inference.backends import RUNTIMES, Runtime, open_network
from lungseg.inference.ensemble import Predictor
from lungseg.model import checkpoint, sources
from lungseg.model.checkpoint import stored_threshold
from lungseg.model.onnx_cache import SHIPPED, find_or_export
from lungseg.model.onnx_file import read_onnx

onnx = pytest.importorskip("onnx")
NAMES = sorted(sources.installed())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_masks_are_those_of_torch(name: str, runtime: Runtime) -> None:
    pytest.importorskip(runtime)
    model = checkpoint.verify(sources.installed()[name])
    square = prepare_image(phantom.draw(3, "shenzhen", 600)[0], model.preprocess)[0][None, None]
    found = find_or_export(model)
    assert Path(found.path) == Path(model.folder) / SHIPPED
    assert found.checks[runtime].passed
    result, expected = open_network(found.path, runtime)(square), Predictor(model)(square)
    assert np.abs(result - expected).max() < 1e-4
    threshold = stored_threshold(model)
    assert ((result >= threshold) != (expected >= threshold)).mean() <= 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_has_no_weights_of_its_own(name: str) -> None:
    graph = onnx.load_from_string(read_onnx(f"{sources.installed()[name]}/{SHIPPED}").graph)
    assert {tensor.data_location for tensor in graph.graph.initializer} == {onnx.TensorProto.EXTERNAL}


@pytest.mark.parametrize("name", NAMES)
def test_paddings_are_part_of_the_convolutions(name: str) -> None:
    graph = onnx.load_from_string(read_onnx(f"{sources.installed()[name]}/{SHIPPED}").graph)
    assert "Pad" not in {node.op_type for node in graph.graph.node}


def test_other_weights_are_refused(tmp_path: Path) -> None:
    from lungseg.model.onnx_export import export_graph
    from lungseg.model.shared_weights import share_weights

    model = checkpoint.verify(sources.installed()["lungs"])
    weights = bytearray((Path(model.folder) / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    with pytest.raises(CheckpointError, match=r"differs from model.safetensors"):
        share_weights(export_graph(model), bytes(weights))
