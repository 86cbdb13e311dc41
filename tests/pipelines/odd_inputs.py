"""Unusual and damaged inputs of real archives: each kind has a name, its files, and the expected result."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread

from lungseg.imaging import phantom
from tests.imaging.dicom.dicom_files import coded, saved, write_dicom

U8 = NDArray[np.uint8]
SIZE = 192


@dataclass(frozen=True)
class Kind:
    """One unusual input: its image file, its mask file (or None), the expected status, and the reason codes.

    `links` are (name, target) in the folder of the image, or replace it if `image` is None.
    """

    image: bytes | None
    suffix: str
    mask: bytes | None
    status: str
    codes: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


IMAGE, MASK = phantom.draw(5, "montgomery", SIZE)
GREY = np.ascontiguousarray(np.maximum(IMAGE, 1))


def png(array: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


def jpeg(array: NDArray[Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", **options)
    return stream.getvalue()


def tiff(*pages: NDArray[Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    first, *others = (Image.fromarray(page) for page in pages)
    first.save(stream, "TIFF", **options, **({"save_all": True, "append_images": others} if others else {}))
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def bomb() -> bytes:
    """Return a PNG of a few bytes that declares 50,000 x 50,000 px."""
    header = struct.pack(">IIBBBBB", 50000, 50000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def with_mask(mask: NDArray[Any], status: str, *codes: str) -> Kind:
    return Kind(png(GREY), ".png", png(mask), status, codes)


def dicom(status: str, *codes: str, pixels: NDArray[Any] = GREY, **tags: Any) -> Kind:
    return Kind(write_dicom(pixels, **tags), ".dcm", None, status, codes)


def edited(content: bytes, **tags: Any) -> bytes:
    dataset = dcmread(io.BytesIO(content))
    for name, value in tags.items():
        setattr(dataset, name, value)
    return saved(dataset)


def bad(image: bytes, suffix: str, code: str) -> Kind:
    return Kind(image, suffix, png(MASK * 255), "rejected", (code,))


def good(image: bytes, suffix: str, *repairs: str) -> Kind:
    return Kind(image, suffix, png(MASK * 255), "repaired" if repairs else "ok", repairs)


def one_lung() -> U8:
    return MASK * (np.arange(SIZE) < SIZE // 2).astype(np.uint8) * np.uint8(255)


def labelled() -> U8:
    return MASK * np.where(np.arange(SIZE) < SIZE // 2, 127, 254).astype(np.uint8)


def with_heart() -> U8:
    mask = MASK.copy()
    cv2.circle(mask, (SIZE // 2, SIZE * 2 // 3), SIZE // 8, 2, -1)
    return mask


def dotted(count: int, side: int) -> U8:
    mask = MASK * np.uint8(255)
    for number in range(count):
        mask[4 : 4 + side, 8 + 20 * number : 8 + 20 * number + side] = 255
    return mask


def pierced() -> U8:
    mask = MASK * np.uint8(255)
    rows, columns = np.nonzero(cv2.erode(MASK, np.ones((21, 21), np.uint8)))
    mask[rows[0] : rows[0] + 4, columns[0] : columns[0] + 4] = 0
    return mask


def bordered() -> U8:
    mask = MASK * np.uint8(255)
    mask[:3] = 255
    return mask


def coloured() -> U8:
    random = np.random.default_rng(0)
    blobs = random.integers(0, 255, (6, 6, 3), np.uint8)
    return np.ascontiguousarray(cv2.resize(blobs, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC))


def tinted() -> U8:
    return np.stack([(GREY * share).astype(np.uint8) for share in (0.7, 0.85, 1.0)], axis=2)


def kinds() -> dict[str, Kind]:
    """Return all kinds by name."""
    rgb, grey_png = np.repeat(GREY[..., None], 3, 2), png(GREY)
    wide = (GREY.astype(np.uint16) << 4) + 7
    return {**_files(grey_png), **_links(grey_png), **_images(rgb, wide), **_dicoms(wide), **_masks()}


def _files(grey_png: bytes) -> dict[str, Kind]:
    flipped = bytearray(grey_png)
    flipped[len(grey_png) // 2] ^= 0x40
    return {
        "empty_file": bad(b"", ".png", "undecodable"),
        "png_cut_in_half": bad(grey_png[: len(grey_png) // 2], ".png", "undecodable"),
        "png_header_alone": bad(grey_png[:33], ".png", "undecodable"),
        "png_with_a_flipped_byte": bad(bytes(flipped), ".png", "undecodable"),
        "jpeg_cut_to_its_head": bad(jpeg(GREY)[:150], ".jpg", "undecodable"),
        "tiff_cut": bad(tiff(GREY)[:300], ".tif", "undecodable"),
        "random_bytes": bad(np.random.default_rng(1).bytes(5000), ".png", "undecodable"),
        "web_page_named_png": bad(b"<!DOCTYPE html><html>404 not found</html>", ".png", "undecodable"),
        "text_named_dcm": Kind(b"patient list\n" * 20, ".dcm", None, "rejected", ("undecodable",)),
        "nothing_but_zeros": bad(bytes(4000), ".tif", "undecodable"),
        "bomb_of_50000_px": bad(bomb(), ".png", "too_large"),
        "png_named_jpg": good(grey_png, ".jpg"),
        "upper_case_suffix": good(grey_png, ".PNG"),
    }


def _links(grey_png: bytes) -> dict[str, Kind]:
    mask = png(MASK * 255)
    around = (("around", "."), ("around_again", ".."), ("to_the_masks", "../masks/.."))
    return {
        "dangling_link": Kind(None, ".png", mask, "failed", ("unreadable",), (("dangling_link.png", "nowhere.png"),)),
        "link_to_itself": Kind(None, ".png", mask, "failed", ("unreadable",), (("link_to_itself.png",) * 2,)),
        "loop_of_links": Kind(grey_png, ".png", None, "ok", links=around),
    }


def _images(rgb: U8, wide: NDArray[np.uint16]) -> dict[str, Kind]:
    random = np.random.default_rng(2)
    return {
        "blank_black": bad(png(GREY * 0), ".png", "blank"),
        "blank_white": bad(png(GREY * 0 + np.uint8(255)), ".png", "blank"),
        "blank_but_for_noise": bad(png(random.integers(120, 123, GREY.shape).astype(np.uint8)), ".png", "blank"),
        "thumbnail_of_30_px": bad(png(cv2.resize(GREY, (30, 30))), ".png", "too_small"),
        "strip": bad(png(cv2.resize(GREY, (600, 100))), ".png", "extreme_aspect"),
        "inverted": good(png(255 - GREY), ".png", "inverted"),
        "inverted_of_16_bits": good(png((255 - GREY).astype(np.uint16) << 8), ".png", "inverted"),
        "grey_stored_as_rgb": good(png(rgb), ".png", "grey_as_colour"),
        "grey_stored_as_rgba": good(
            png(np.dstack([rgb, np.full(GREY.shape, 255, np.uint8)])), ".png", "grey_as_colour"
        ),
        "grey_in_a_colour_jpeg": good(jpeg(rgb, quality=70), ".jpg", "grey_as_colour"),
        "tinted_film": good(png(tinted()), ".png", "grey_as_colour"),
        "inverted_and_rgb": good(png(255 - rgb), ".png", "grey_as_colour", "inverted"),
        "colour_photograph": bad(png(coloured()), ".png", "colour"),
        "png_of_16_bits_using_12": good(png(wide), ".png"),
        "tiff_of_16_bits": good(tiff(wide), ".tiff"),
        "tiff_of_floats": bad(tiff(GREY.astype(np.float32)), ".tif", "depth"),
        "progressive_jpeg": good(jpeg(GREY, quality=95, progressive=True), ".jpeg"),
        "tiff_of_two_pages": bad(tiff(GREY, GREY), ".tif", "multi_frame"),
        "bmp": good(cv2.imencode(".bmp", GREY)[1].tobytes(), ".bmp"),
        "jpeg2000_alone": good(cv2.imencode(".jp2", GREY)[1].tobytes(), ".jp2"),
        "picture_without_a_mask": Kind(png(GREY), ".png", None, "ok"),
    }


def _dicoms(wide: NDArray[np.uint16]) -> dict[str, Kind]:
    plain = write_dicom(wide, BitsStored=12)
    stack = np.concatenate([GREY, GREY])
    return {
        "dicom_of_12_bits": dicom("ok", pixels=wide, BitsStored=12),
        "dicom_monochrome1": dicom("ok", pixels=255 - GREY, PhotometricInterpretation="MONOCHROME1"),
        "dicom_that_lies_of_its_polarity": dicom("repaired", "inverted", pixels=255 - GREY),
        "dicom_jpeg2000": Kind(coded(plain, "1.2.840.10008.1.2.4.90"), ".dcm", None, "ok"),
        "dicom_without_a_suffix": Kind(plain, "", None, "ok"),
        "dicom_lateral": dicom("rejected", "lateral_view", ViewPosition="LL"),
        "dicom_hand": dicom("rejected", "body_part", BodyPartExamined="HAND"),
        "dicom_ct": dicom("rejected", "not_radiograph", Modality="CT"),
        "dicom_of_two_frames": dicom("rejected", "multi_frame", pixels=stack, Rows=SIZE, NumberOfFrames=2),
        "dicom_report": dicom(
            "rejected",
            "no_pixels",
            Modality="SR",
            PixelData=None,
            Rows=None,
            Columns=None,
            SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11",
        ),
        "dicom_cut": Kind(plain[: len(plain) // 2], ".dcm", None, "rejected", ("undecodable",)),
        "dicom_of_32_bits": dicom("rejected", "depth", pixels=GREY.astype(np.uint32)),
        "dicom_with_wrong_rows": Kind(edited(plain, Rows=5000), ".dcm", None, "rejected", ("undecodable",)),
        "dicom_with_a_wrong_length": Kind(
            plain.replace(b"OW\0\0" + (2 * GREY.size).to_bytes(4, "little"), b"OW\0\0\xf0\xff\xff\x7f"),
            ".dcm",
            None,
            "rejected",
            ("undecodable",),
        ),
        "dicom_that_promises_too_much": Kind(
            edited(plain, Rows=60000, Columns=60000), ".dcm", None, "rejected", ("too_large",)
        ),
        "dicom_in_colour": dicom("rejected", "colour", pixels=coloured()),
    }


def _masks() -> dict[str, Kind]:
    mask = MASK * np.uint8(255)
    tiny = np.zeros_like(mask)
    tiny[80:90, 60:70] = tiny[80:90, 120:130] = 255
    half = cv2.resize(mask, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
    return {
        "mask_of_0_and_1": with_mask(MASK, "ok"),
        "mask_antialiased": with_mask(cv2.GaussianBlur(mask, (0, 0), 1.0), "ok"),
        "mask_as_jpeg": Kind(png(GREY), ".png", jpeg(mask, quality=80), "ok"),
        "mask_of_16_bits": with_mask(mask.astype(np.uint16) * 257, "ok"),
        "mask_of_half_size": with_mask(half, "repaired", "mask_resized"),
        "mask_with_specks": with_mask(dotted(5, 3), "repaired", "mask_specks"),
        "mask_with_a_hole": with_mask(pierced(), "repaired", "mask_holes"),
        "mask_of_another_shape": with_mask(mask[:, :-20], "rejected", "mask_size"),
        "mask_empty": with_mask(mask * 0, "rejected", "mask_empty"),
        "mask_full": with_mask(mask * 0 + np.uint8(255), "rejected", "mask_full"),
        "mask_upside_down": with_mask(np.flipud(mask), "rejected", "mask_orientation"),
        "mask_turned": with_mask(np.rot90(mask), "rejected", "mask_orientation"),
        "mask_of_one_lung": with_mask(one_lung(), "rejected", "mask_components"),
        "mask_of_many_parts": with_mask(dotted(4, 16), "rejected", "mask_components"),
        "mask_along_the_border": with_mask(bordered(), "rejected", "mask_border"),
        "mask_far_too_small": with_mask(tiny, "rejected", "mask_area"),
        "mask_of_a_grey_a_lung": with_mask(labelled(), "ok"),
        "mask_that_says_not_which_is_lung": with_mask(with_heart(), "rejected", "mask_levels"),
        "mask_cut": Kind(png(GREY), ".png", png(mask)[:60], "rejected", ("undecodable",)),
        "mask_that_is_no_picture": Kind(png(GREY), ".png", b"not a mask", "rejected", ("undecodable",)),
    }
