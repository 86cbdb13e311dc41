"""ONNX graphs without weights of their own: they refer to those in model.safetensors beside them."""

import json
import struct

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lungseg.errors import CheckpointError

WEIGHTS = "model.safetensors"
_PREFIX = "network."  # of the names in the graph
_TYPES = {"F16": (TensorProto.FLOAT16, np.float16), "F32": (TensorProto.FLOAT, np.float32)}


def share_weights(graph: bytes, weights: bytes) -> bytes:
    """Replace the weights of an exported graph by references to the file that the model was exported from.

    weights: content of model.safetensors. Weights in fp16 become fp32 in the graph, when a backend loads it.

    Raises:
        CheckpointError: a weight of the graph is not in the file.

    """
    model = onnx.load_from_string(graph)
    length = struct.unpack("<Q", weights[:8])[0]
    entries = json.loads(weights[8 : 8 + length])
    start, casts, shared = 8 + length, [], []
    for tensor in model.graph.initializer:
        entry = entries.get(tensor.name.removeprefix(_PREFIX))
        if entry is None:
            raise CheckpointError(f"{tensor.name} is not in {WEIGHTS}: export the graph of this model")
        kind, dtype = _TYPES[entry["dtype"]]
        first, end = entry["data_offsets"]
        stored = np.frombuffer(weights[start + first : start + end], dtype).reshape(entry["shape"])
        if not np.array_equal(numpy_helper.to_array(tensor), stored.astype(np.float32)):
            raise CheckpointError(f"{tensor.name} differs from {WEIGHTS}: export the graph of this model")
        name = tensor.name if kind == TensorProto.FLOAT else f"{tensor.name}.half"
        if name != tensor.name:
            casts.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
        shared.append(_reference(name, kind, tensor.dims, (start + first, end - first)))
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(shared)
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _reference(name: str, kind: int, shape: list[int], place: tuple[int, int]) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    values = {"location": WEIGHTS, "offset": str(place[0]), "length": str(place[1])}
    for key, value in values.items():
        tensor.external_data.add(key=key, value=value)
    return tensor
