"""Alpha channels: they are the mask where colour says nothing, and never change an X-ray."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lungseg.imaging import codecs, phantom

U8 = NDArray[np.uint8]
IMAGE, LUNGS = phantom.draw(4, "shenzhen", 128)
NOISE = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
WHITE, RED, BLACK, GREY = (255, 255, 255), (255, 0, 0), (0, 0, 0), (90, 90, 90)
EVERYWHERE = np.ones_like(LUNGS)


def rgba(drawn: U8, colour: tuple[int, ...], hidden: Any = None, opacity: int = 255, rest: int = 0) -> U8:
    """Draw a colour with an opacity; hidden: the colour of the other pixels, whose opacity is `rest`."""
    below = colour if hidden is None else hidden
    pixels = np.where(drawn[..., None] == 1, np.array(colour), np.broadcast_to(np.array(below), (*drawn.shape, 3)))
    return np.dstack([pixels, np.where(drawn == 1, opacity, rest)]).astype(np.uint8)


def save(array: NDArray[Any], kind: str = "PNG", mode: str = "", **options: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def png_16_bits(channels: NDArray[np.uint16], colour_type: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = channels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in channels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def palette(kind: str, colours: tuple[tuple[int, ...], tuple[int, ...]]) -> bytes:
    """Index 0 is transparent background, index 1 lung."""
    image = Image.fromarray(LUNGS)
    image.putpalette([*colours[0], *colours[1], *[7] * 762])
    stream = io.BytesIO()
    image.save(stream, kind, transparency=0)
    return stream.getvalue()


def two_colours() -> U8:
    """Right lung red, left lung green, on transparent."""
    pixels = rgba(LUNGS, RED)
    pixels[:, 64:, :3] = (0, 255, 0)
    return pixels


def padded_mask() -> U8:
    """White lungs on opaque black, and transparent noise around."""
    inside = np.zeros_like(LUNGS)
    inside[4:-4, 4:-4] = 1
    pixels = np.dstack([NOISE, inside * np.uint8(255)])
    pixels[inside == 1, :3] = (LUNGS * 255)[inside == 1][:, None]
    return pixels


def cut_out() -> U8:
    """The X-ray inside the lungs, transparent elsewhere."""
    return np.dstack([IMAGE, IMAGE, IMAGE, LUNGS * np.uint8(255)])


DEEP = LUNGS.astype(np.uint16) * np.uint16(65535)
FROM_ALPHA = {
    "white": save(rgba(LUNGS, WHITE)),
    "red": save(rgba(LUNGS, RED)),
    "black": save(rgba(LUNGS, BLACK)),
    "black, white below": save(rgba(LUNGS, BLACK, WHITE)),
    "white, noise below": save(rgba(LUNGS, WHITE, NOISE)),
    "black, noise below": save(rgba(LUNGS, BLACK, NOISE)),
    "half opaque": save(rgba(LUNGS, RED, opacity=128)),
    "faint": save(rgba(LUNGS, WHITE, opacity=60)),
    "opacities 0 and 1": save(rgba(LUNGS, BLACK, opacity=1)),
    "opacities 0 and 20, noise below": save(rgba(LUNGS, RED, NOISE, opacity=20)),
    "opacities 255 and 240": save(rgba(LUNGS, WHITE, opacity=240, rest=255)),
    "colour and faint alpha, 16 bits": png_16_bits(np.dstack([np.zeros_like(DEEP)] * 3 + [DEEP // 257]), 6),
    "opaque on half opaque": save(rgba(LUNGS, WHITE, rest=128)),
    "grey and alpha": save(rgba(LUNGS, WHITE), mode="LA"),
    "grey and alpha, 16 bits": png_16_bits(np.dstack([np.full_like(DEEP, 65535), DEEP]), 4),
    "colour and alpha, 16 bits": png_16_bits(np.dstack([np.zeros_like(DEEP)] * 3 + [DEEP]), 6),
    "palette of black and black": palette("PNG", (BLACK, BLACK)),
    "palette of white and white": palette("PNG", (WHITE, WHITE)),
    "gif of white and white": palette("GIF", (WHITE, WHITE)),
    "webp": save(rgba(LUNGS, BLACK), "WEBP", lossless=True),
    "tiff": save(rgba(LUNGS, BLACK), "TIFF"),
    "tiff, lzw": save(rgba(LUNGS, WHITE), "TIFF", compression="tiff_lzw"),
    "tiff of grey and alpha": save(rgba(LUNGS, WHITE), "TIFF", mode="LA"),
    "lungs are holes in black": save(rgba(EVERYWHERE - LUNGS, BLACK)),
    "lungs are holes in white": save(rgba(EVERYWHERE - LUNGS, WHITE, BLACK)),
    "cut-out of the X-ray": save(cut_out()),
}
FROM_COLOUR = {
    "opaque": save(rgba(LUNGS, WHITE, BLACK, rest=255)),
    "colour and alpha agree": save(rgba(LUNGS, WHITE, BLACK)),
    "red and alpha agree": save(rgba(LUNGS, RED, BLACK)),
    "alpha is 0 everywhere": save(rgba(LUNGS, WHITE, BLACK, opacity=0)),
    "alpha is 7 everywhere": save(rgba(LUNGS, WHITE, BLACK, opacity=7, rest=7)),
    "alpha varies little": save(np.dstack([np.dstack([LUNGS * np.uint8(255)] * 3), 250 + NOISE[..., 0] % 6])),
    "white on nearly opaque black": save(rgba(LUNGS, WHITE, BLACK, rest=254)),
    "colour and opacities 0 and 1 agree": save(rgba(LUNGS, WHITE, BLACK, opacity=1)),
    "white on half opaque black": save(rgba(LUNGS, WHITE, BLACK, rest=140)),
    "half opaque white on black": save(rgba(LUNGS, WHITE, BLACK, opacity=140, rest=255)),
    "one colour for each lung": save(two_colours()),
    "transparent padding with noise": save(padded_mask()),
    "opaque gif": save(LUNGS * np.uint8(255), "GIF"),
    "palette of black and white": palette("PNG", (BLACK, WHITE)),
}


@pytest.mark.parametrize("name", FROM_ALPHA)
def test_alpha_is_the_mask_where_colour_says_nothing(name: str) -> None:
    decoded = codecs.read_mask(FROM_ALPHA[name], name)
    np.testing.assert_array_equal(decoded.mask, LUNGS)
    assert decoded.is_alpha


@pytest.mark.parametrize("name", FROM_COLOUR)
def test_colour_is_the_mask_where_it_shows_one(name: str) -> None:
    decoded = codecs.read_mask(FROM_COLOUR[name], name)
    np.testing.assert_array_equal(decoded.mask, LUNGS)
    assert not decoded.is_alpha


def test_mask_in_the_alpha_of_a_tagged_tiff_is_upright() -> None:
    content = save(rgba(np.ascontiguousarray(np.rot90(LUNGS)), WHITE), "TIFF", mode="LA", tiffinfo={274: 6})
    decoded = codecs.read_mask(content, "tagged.tif")
    np.testing.assert_array_equal(decoded.mask, LUNGS)
    assert (decoded.orientation, decoded.is_alpha) == (6, True)


def test_each_lung_may_have_its_own_opacity() -> None:
    pixels = rgba(LUNGS, WHITE)
    pixels[:, 64:, 3] //= 2
    np.testing.assert_array_equal(codecs.decode_mask(save(pixels), "opacities.png"), LUNGS)


def test_antialiased_alpha_is_cut_at_half() -> None:
    soft = cv2.GaussianBlur(LUNGS * np.uint8(255), (0, 0), 1.0)
    for colour in (BLACK, WHITE, GREY):
        pixels = np.dstack([np.full((128, 128, 3), colour, np.uint8), soft])
        np.testing.assert_array_equal(codecs.decode_mask(save(pixels), "soft.png"), soft > int(soft.max()) // 2)


def test_full_mask_with_meaningless_alpha_stays_full() -> None:
    for opacity in (0, 255):
        assert codecs.decode_mask(save(rgba(EVERYWHERE, WHITE, opacity=opacity)), "full.png").all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    "alpha", [np.zeros_like(LUNGS), np.full_like(LUNGS, 255), LUNGS * np.uint8(255), NOISE[..., 0]]
)
def test_alpha_does_not_change_an_image(kind: str, alpha: U8) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    content = save(np.dstack([IMAGE] * 3 + [alpha]), kind, **options)
    decoded = codecs.decode(content, "x")
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    inside = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows.size else np.s_[:, :]
    np.testing.assert_array_equal(decoded[inside], IMAGE[inside])


def test_transparent_padding_becomes_black() -> None:
    alpha = np.zeros((128, 128), np.uint8)
    alpha[10:100, 20:] = 255
    decoded = codecs.decode(save(np.dstack([IMAGE | 1] * 3 + [alpha])), "x.png")
    np.testing.assert_array_equal(decoded, np.where(alpha > 0, IMAGE | 1, 0))
