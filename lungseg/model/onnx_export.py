"""Convert the network of a checkpoint to an ONNX graph."""

import io
import warnings

import torch
from torch import Tensor, nn

from lungseg.errors import first_line
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.checkpoint_io import load_model
from lungseg.model.onnx_file import INPUT, OUTPUT, ExportError
from lungseg.model.onnx_padding import merge_padding

_OPSET = 17
_EXAMPLE_BATCH = 2  # an example of one image would fix the batch to one image


class _ScaledNetwork(nn.Module):
    """Images u8[B,1,S,S] to probabilities f32[B,K,S,S], so that a user of the graph scales nothing."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.network(images.float() / 255.0).float())


def export_graph(checkpoint: Checkpoint, custom_network: str = "") -> bytes:
    """Return the network as an ONNX file with a dynamic batch: images u8[B,1,S,S] to probabilities f32[B,K,S,S].

    The weights keep their names and values: batch normalisation stays a step of its own, which every backend merges
    into the convolution before it when it loads the file.

    Raises:
        ExportError: the network cannot be converted.
        CheckpointError: the weights do not fit the network.

    """
    network = _ScaledNetwork(load_model(checkpoint, custom_network)).eval()
    merge_padding(network)
    size = checkpoint.preprocess.size
    example = torch.zeros(_EXAMPLE_BATCH, 1, size, size, dtype=torch.uint8)
    content = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter of torch.compile needs onnxscript, and fixes sizes that depend on the batch.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                network,
                (example,),
                content,  # type: ignore[arg-type]  # files are accepted where dynamo=False
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
                opset_version=_OPSET,
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
                dynamo=False,
            )
        except MemoryError:
            raise
        except Exception as error:  # the exporter and custom networks raise exceptions of many types
            raise ExportError(
                f"{checkpoint.folder}: its network cannot be converted to ONNX ({first_line(error)}): pass --backend "
                "torch"
            ) from None
    return content.getvalue()
