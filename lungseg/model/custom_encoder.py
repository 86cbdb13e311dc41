"""The decoder of DeepLabV3+ behind an encoder of the user's own, for --model.custom."""

from torch import Tensor, nn

from lungseg.model.lazy_imports import smp

_CHANNELS, _ATROUS_RATES, _STRIDE, _FINE_STRIDE = 256, (12, 24, 36), 16, 4


class EncoderWithDecoder(nn.Module):
    """An encoder and the decoder of DeepLabV3+, as the built-in network has it.

    encoder: a module with `out_channels`, the channels of its features. It takes images f32[B,1,H,W] in [0,1] and
    returns a list of features at 1, 1/2, 1/4, 1/8 and 1/16 of the size, like encoders of segmentation-models-pytorch.
    The decoder uses those at 1/4 and 1/16.
    """

    def __init__(self, encoder: nn.Module, dropout: float = 0.5, classes: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = smp.decoders.deeplabv3.decoder.DeepLabV3PlusDecoder(
            encoder_channels=encoder.out_channels,
            encoder_depth=len(encoder.out_channels) - 1,  # type: ignore[arg-type]
            out_channels=_CHANNELS,
            atrous_rates=_ATROUS_RATES,
            output_stride=_STRIDE,
            aspp_separable=True,
            aspp_dropout=dropout,
        )
        self.head = smp.base.SegmentationHead(_CHANNELS, classes, kernel_size=1, upsampling=_FINE_STRIDE)
        smp.base.initialization.initialize_decoder(self.decoder)
        smp.base.initialization.initialize_head(self.head)

    def forward(self, images: Tensor) -> Tensor:
        """Predict logits f32[B,K,H,W], K classes; H and W are multiples of 16."""
        return self.head(self.decoder(self.encoder(images)))  # type: ignore[no-any-return]
