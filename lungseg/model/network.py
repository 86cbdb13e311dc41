"""DeepLabV3+ with any encoder: grey images to logits."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lungseg.config import ModelSettings
from lungseg.config.train import Activation
from lungseg.errors import InputError, SettingsError, first_line
from lungseg.model.custom_code import NETWORK, errors_of, load_object
from lungseg.model.lazy_imports import smp, timm
from lungseg.model.pretrained import load_encoder_weights, missing_weights_message

# Input scaling of smp's own encoders. timm's encoders (tu-) define their own.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class LungNetwork(nn.Module):
    """DeepLabV3+: images f32[B,1,H,W] in [0,1], H and W multiples of 16, to logits f32[B,K,H,W], one a class.

    The sigmoid of a logit is the probability of its class. The input scaling of the encoder is part of the network and
    of its weights, so callers never scale images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], activation: Activation = "sigmoid"
    ) -> None:
        super().__init__()
        self.net = net
        self._is_exclusive = activation == "softmax"
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Predict logits; the grey channel is broadcast to the colour channels of the encoder."""
        logits: Tensor = self.net((images - self.mean) / self.std)
        return exclusive_logits(logits) if self._is_exclusive else logits


def exclusive_logits(logits: Tensor) -> Tensor:
    """Return logits whose sigmoid is the softmax over the classes and the background, f32[B,K,H,W].

    logits: f32[B,K,H,W] of the classes; the logit of the background is 0.
    """
    scores = torch.cat([torch.zeros_like(logits[:, :1]), logits.float()], dim=1)
    others = [
        torch.cat([scores[:, :number], scores[:, number + 1 :]], dim=1).logsumexp(dim=1, keepdim=True)
        for number in range(1, scores.shape[1])
    ]
    return logits - torch.cat(others, dim=1)


def build_network(settings: ModelSettings, pretrained: bool = True, classes: int = 1) -> LungNetwork:
    """Build the network for a number of classes. With `pretrained`, load `settings.weights` into the encoder.

    All other weights come from the random state of torch. A custom network loads its weights itself.

    Raises:
        SettingsError: the encoder does not exist, or DeepLabV3+ cannot use it; or a custom network cannot be built.
        InputError: the weights are not available.

    """
    if settings.custom:
        return _build_custom(settings)
    net = _deeplab(
        settings.encoder,
        None,
        decoder_channels=settings.decoder_channels,
        decoder_aspp_dropout=settings.dropout,
        classes=classes,
    )
    encoder: nn.Module = net.encoder
    if pretrained and settings.weights != "none":
        state = load_encoder_weights(settings.encoder, settings.weights, encoder.state_dict())
        encoder.load_state_dict(_download(settings.encoder) if state is None else state)
    return LungNetwork(net, *_scaling(settings.encoder), settings.activation)


def _build_custom(settings: ModelSettings) -> LungNetwork:
    path, build = settings.custom, load_object(NETWORK, settings.custom)
    with errors_of(NETWORK, path):
        net = build()
    if not isinstance(net, nn.Module):
        raise SettingsError(f"{NETWORK.option} {path} returned {type(net).__name__}, expected: {NETWORK.signature}")
    return LungNetwork(net, (0.0,), (1.0,), settings.activation)  # one channel, not scaled


@contextmanager
def skip_weight_init() -> Iterator[None]:
    """Leave the weights of networks built in the block uninitialised, for loading others: ten times faster."""
    initialisers = {name: function for name, function in vars(nn.init).items() if name[0] != "_" and name[-1] == "_"}
    for name in initialisers:
        setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    try:
        yield
    finally:
        for name, function in initialisers.items():
            setattr(nn.init, name, function)


def _deeplab(encoder: str, weights: str | None, **options: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # smp warns about the weight names of tu- encoders
            return smp.DeepLabV3Plus(encoder, encoder_weights=weights, **options)
    except (KeyError, RuntimeError, ValueError, NotImplementedError, TypeError, AssertionError) as error:
        reason = first_line(error).strip("'\"")[:120]
        raise SettingsError(
            f"--model.encoder {encoder}: DeepLabV3+ cannot use it ({reason}): pass resnet50, mobilenet_v2 or another"
        ) from None


def _download(encoder: str) -> dict[str, Tensor]:
    try:
        downloaded: nn.Module = _deeplab(encoder, "imagenet").encoder
    except OSError:
        raise InputError(missing_weights_message(encoder)) from None
    return downloaded.state_dict()


def _scaling(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not encoder.startswith("tu-") or not timm.models.is_model_pretrained(encoder.removeprefix("tu-")):
        return _IMAGENET_MEAN, _IMAGENET_STD
    params = smp.encoders.get_preprocessing_params(encoder, "imagenet")
    return tuple(params["mean"]), tuple(params["std"])
