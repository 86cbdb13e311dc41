"""Convolutions that pad one side more than the other: one operator in ONNX, with the results of timm."""

import io
import warnings
from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from lungseg.model.onnx_padding import merge_padding

onnx = pytest.importorskip("onnx")


def export(network: nn.Module, image: Tensor) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (image,),
            content,  # type: ignore[arg-type]
            input_names=["image"],
            dynamic_axes={"image": {0: "batch"}},
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,  # this and the following as in `export_graph`
            do_constant_folding=False,
            dynamo=False,
        )
    return content.getvalue()


@pytest.mark.parametrize("shape", [(32, 32), (33, 48)])
def test_results_are_those_of_timm(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        Conv2dSame(1, 4, 3, stride=2),
        nn.ReLU(),
        Conv2dSame(4, 8, (5, 3), stride=2, groups=4, bias=False),
        Conv2dSame(8, 8, (3, 5), dilation=2),
    ).eval()
    images = torch.rand(3, 1, *shape)
    with torch.no_grad():
        expected = network(images).numpy()
        merge_padding(network)
        assert np.array_equal(network(images).numpy(), expected)
    graph = export(network, images[:2])
    kinds = Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)
    assert kinds == {"Conv": 3, "Relu": 1}
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, {"image": images.numpy()})[0] - expected).max() < 1e-5


def test_a_convolution_with_its_own_computation_keeps_it() -> None:
    class Doubled(Conv2dSame):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    network, image = nn.Sequential(Doubled(1, 4, 3, stride=2)).eval(), torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        expected = network(image)
        merge_padding(network)
        assert torch.equal(network(image), expected)
