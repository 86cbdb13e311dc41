"""Models in one file without Python code: ONNX files, and OpenVINO's XML with a .bin file beside it."""

from typing import Any

from lungseg.errors import CheckpointError
from lungseg.model.onnx_file import is_onnx, read_onnx
from lungseg.model.openvino_file import is_openvino, read_openvino


def is_graph(path: str) -> bool:
    """Return whether a path names such a file."""
    return is_onnx(path) or is_openvino(path)


def read_metadata(path: str) -> dict[str, Any]:
    """Read the metadata of a file, and compare the content with its digest.

    Raises:
        CheckpointError: it is damaged, was changed, or was not exported by lungseg.
        InputError: it cannot be read.

    """
    return read_onnx(path).metadata if is_onnx(path) else read_openvino(path)


def require_torch_model(path: str) -> None:
    """Check that torch can run a model.

    Raises:
        CheckpointError: it is a graph.

    """
    if is_graph(path):
        raise CheckpointError(
            f"{path}: torch cannot run this file: leave out --backend torch, --device gpu and --profile, or pass the "
            "folder of the model"
        )


def can_run(path: str, backend: str) -> bool:
    """Return whether a backend, other than torch, reads this kind of file."""
    return backend == "openvino" or not is_openvino(path)
