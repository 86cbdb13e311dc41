"""OpenVINO files of lungseg: XML and .bin, with the metadata of onnx_file.py and a digest in the XML's rt_info."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from lungseg import storage
from lungseg.errors import CheckpointError
from lungseg.model.onnx_file import parse_metadata

SUFFIX = ".xml"
_METADATA, _DIGEST = "lungseg", "lungseg_sha256"
_NO_DIGEST = "0" * 64


def is_openvino(path: str) -> bool:
    """Return whether a path names an OpenVINO file."""
    return path.lower().endswith(SUFFIX)


def weights_path(path: str) -> str:
    """Return the .bin file of an XML file."""
    return f"{path[: -len(SUFFIX)]}.bin"


def write_openvino(onnx_path: str, path: str, metadata: dict[str, Any]) -> None:
    """Convert an ONNX file to a local XML file with its .bin file."""
    import openvino

    model = openvino.Core().read_model(onnx_path)
    for key in list(model.get_rt_info()):
        model.set_rt_info("", [key])
    model.set_rt_info(json.dumps(metadata, sort_keys=True), [_METADATA])
    model.set_rt_info(_NO_DIGEST, [_DIGEST])
    openvino.save_model(model, path, compress_to_fp16=False)
    xml, weights = Path(path).read_bytes(), Path(weights_path(path)).read_bytes()
    digest = hashlib.sha256(xml + weights).hexdigest()
    storage.write_bytes(path, xml.replace(f'value="{_NO_DIGEST}"'.encode(), f'value="{digest}"'.encode()))


def read_openvino(path: str) -> dict[str, Any]:
    """Read the metadata of an XML file, and compare both files with the digest.

    Raises:
        CheckpointError: they are damaged, were changed, or were not exported by lungseg.
        InputError: one cannot be read.

    """
    xml, weights = storage.read_bytes(path), storage.read_bytes(weights_path(path))
    if b"<!DOCTYPE" in xml:  # OpenVINO writes none, and an entity could expand without end
        raise _not_ours(path)
    try:
        info = ET.fromstring(xml).find("rt_info")  # noqa: S314  # without a DOCTYPE there are no entities
    except ET.ParseError:
        raise _not_ours(path) from None
    values = {} if info is None else {entry.tag: entry.get("value", "") for entry in info}
    digest = values.get(_DIGEST, "")
    if _METADATA not in values or not re.fullmatch("[0-9a-f]{64}", digest):
        raise _not_ours(path)
    blank = xml.replace(f'value="{digest}"'.encode(), f'value="{_NO_DIGEST}"'.encode())
    if hashlib.sha256(blank + weights).hexdigest() != digest:
        raise CheckpointError(
            f"{path}: the digest differs from the content of this file and its .bin: copy or export them again"
        )
    return parse_metadata(values[_METADATA].encode(), path)


def _not_ours(path: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: not an OpenVINO file of lungseg, or damaged: write one with lungseg export-model --format openvino"
    )
