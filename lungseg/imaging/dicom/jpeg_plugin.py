"""Decoder plugin of pydicom: JPEG Lossless and 12-bit JPEG (libjpeg-turbo), JPEG-LS (CharLS), through imagecodecs."""

from typing import TYPE_CHECKING

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

NAME = "imagecodecs"
_JPEG_LS = (JPEGLSLossless, JPEGLSNearLossless)
DECODER_DEPENDENCIES = dict.fromkeys((JPEGLossless, JPEGLosslessSV1, JPEGExtended12Bit, *_JPEG_LS), (NAME,))


def register() -> None:
    """Add the plugin to pydicom's decoders; do nothing if it was added before."""
    for coding in DECODER_DEPENDENCIES:
        decoder = get_decoder(coding)
        if NAME not in decoder.available_plugins:
            decoder.add_plugin(NAME, (__name__, "decode_frame"))


def is_available(coding: str) -> bool:
    """Return whether the plugin decodes a transfer syntax, for pydicom."""
    return coding in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: "DecodeRunner") -> bytearray:
    """Decode one frame, for pydicom."""
    from imagecodecs import jpeg8_decode, jpegls_decode

    frame = (jpegls_decode if runner.transfer_syntax in _JPEG_LS else jpeg8_decode)(source)
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * frame.itemsize)  # 8 bits in a file of 16 are decoded to bytes
    return bytearray(frame.tobytes())
