import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg import storage
from lungseg.imaging import codecs
from lungseg.predictions import overlays
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import table

U8 = NDArray[np.uint8]
DrawPair = Callable[[int, int, int], tuple[U8, U8]]
Row = dict[str, Any]


def _row(name: str, dice: float | None, seen: bool = False) -> Row:
    return {
        "image_id": name,
        "dataset": "north",
        "source_uri": "",
        "status": "ok",
        "codes": [],
        "dice": dice,
        "seen_in_training": seen,
        "flags": [],
        "doubt": None,
        "doubt_reason": None,
    }


def _written(tmp_path: Path, mask: U8, **values: Any) -> Row:
    """A row as results reads it, with its mask in a part."""
    height, width = mask.shape
    row = {**dict.fromkeys(PREDICTIONS.names), **_row("one", 0.9), "height": height, "width": width, **values}
    part = str(tmp_path / "part-000000.parquet")
    storage.write_table(part, table([{**row, "mask": codecs.encode_rle(mask)}], PREDICTIONS))
    return {**row, "part": part, "position": 0}


def _image(shown: overlays.Overlay) -> U8:
    content = base64.b64decode(shown.image.removeprefix("data:image/png;base64,"))
    return codecs.decode(content, "image").astype(np.uint8)


def _path(shown: overlays.Overlay, name: str = "") -> str:
    """Return the outline of a mask; without a name those of all masks."""
    return "".join(outline.path for outline in shown.outlines if name in ("", outline.name))


def _rings(path: str) -> list[str]:
    """Split an outline into its closed lines."""
    return re.findall(r"M([^Z]*)Z", path)


def _filled(path: str, shown: overlays.Overlay) -> U8:
    """Fill an outline again, u8[H,W] of the image size."""
    canvas = np.zeros((shown.height, shown.width), np.uint8)
    for ring in _rings(path):
        points = np.array([[float(value) for value in point.split()] for point in ring.split("L")])
        cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], 1)
    return canvas


@pytest.mark.parametrize(
    ("count", "expected"), [(0, (0, 0, 0)), (1, (1, 0, 0)), (2, (1, 0, 1)), (5, (2, 1, 2)), (12, (4, 4, 4))]
)
def test_cases_are_a_third_of_each_rank(count: int, expected: tuple[int, int, int]) -> None:
    rows = [_row(f"{i:02d}", i / 100) for i in range(40)]
    chosen = overlays.select_cases(rows, count)
    ranks = [rank for rank, _ in chosen]
    assert (ranks.count("worst"), ranks.count("median"), ranks.count("best")) == expected
    assert len({row["image_id"] for _, row in chosen}) == count
    if count == 12:
        numbers = [int(row["image_id"]) for _, row in chosen]
        assert numbers == [0, 1, 2, 3, 18, 19, 20, 21, 36, 37, 38, 39]


def test_flagged_images_come_first_up_to_half() -> None:
    rows = [_row(f"{i:02d}", i / 100) for i in range(40)]
    for number, flags in ((7, ["lungs_joined"]), (9, ["rotated", "lungs_implausible"]), (11, ["mask_uneven"])):
        rows[number]["flags"] = flags
    chosen = overlays.select_cases(rows, 12)
    assert [(rank, row["image_id"]) for rank, row in chosen[:2]] == [("flagged", "09"), ("flagged", "07")]
    assert [rank for rank, _ in chosen].count("flagged") == 2
    assert len({row["image_id"] for _, row in chosen}) == 12
    for row in rows:
        row["flags"] = ["not_chest_like"]
    assert [rank for rank, _ in overlays.select_cases(rows, 5)] == ["flagged"] * 3 + ["worst", "best"]


def test_doubtful_images_are_ranked_flagged_ones_first() -> None:
    rows = [{**_row(name, None), "doubt": doubt} for name, doubt in (("a", 0.1), ("b", 0.3), ("c", 0.2), ("d", 0.05))]
    rows[3]["flags"] = ["rotated"]
    rows[1]["status"] = "failed"
    ranked = [(rank, row["image_id"]) for rank, row in overlays.select_doubtful(rows, 9)]
    assert ranked == [("1", "d"), ("2", "c"), ("3", "a")]
    assert overlays.select_doubtful(rows, 0) == []


def test_few_images_are_selected_once_each() -> None:
    rows = [_row("a", 0.5), _row("b", None), _row("c", 0.9, seen=True), {**_row("d", None), "status": "failed"}]
    assert [(rank, row["image_id"]) for rank, row in overlays.select_cases(rows, 12)] == [
        ("worst", "a"),
        ("best", "c"),
        ("", "b"),
    ]
    assert [row["image_id"] for _, row in overlays.select_cases(rows, 1)] == ["a"]


def test_a_large_16_bit_image_with_two_masks_is_drawn(tmp_path: Path, draw_pair: DrawPair) -> None:
    image, mask = draw_pair(1, 720, 500)
    left, right = mask.copy(), mask.copy()
    left[:, 250:], right[:, :250] = 0, 0
    paths = {name: str(tmp_path / f"{name}.png") for name in ("image", "left", "right")}
    for name, array in (("image", image.astype(np.uint16) << 4), ("left", left * 255), ("right", right * 255)):
        assert cv2.imwrite(paths[name], array)
    row = _written(tmp_path, mask, source_uri=paths["image"], mask_uris=[paths["left"], paths["right"]])
    shown = overlays.draw_case(row, "best", "unseen")
    assert (shown.height, shown.width, shown.note) == (360, 250, "")
    assert abs(int(_image(shown).mean()) - int(image.mean())) <= 1
    assert (
        _path(shown, "right lung").count("M"),
        _path(shown, "left lung").count("M"),
        shown.references.count("M"),
    ) == (1, 1, 2)
    assert sorted(_rings(_path(shown))) == sorted(_rings(shown.references))
    small = cv2.resize(mask, (250, 360), interpolation=cv2.INTER_AREA)
    assert np.mean(_filled(_path(shown), shown) != small) < 0.01


def test_a_prepared_sample_is_drawn_at_native_size(tmp_path: Path, prepared: Path, archive: Path) -> None:
    name = "north_02"
    native = codecs.decode((archive / "north" / "images" / f"{name}.png").read_bytes(), name)
    truth = codecs.decode_mask((archive / "north" / "masks" / f"{name}.png").read_bytes(), name)
    (shard,) = [
        row["shard"]
        for row in storage.read_table(str(prepared / "north" / "index.parquet")).to_pylist()
        if row["image_id"] == name
    ]
    uri = f"{prepared}/north/{shard}.tar#{name}"
    shown = overlays.draw_case(_written(tmp_path, truth, source_uri=uri, mask_uris=[]), "worst", "seen")
    assert (shown.height, shown.width) == (round(360 * native.shape[0] / native.shape[1]), 360)
    assert shown.note == "grey values as prepared"
    both = [_filled(path, shown) for path in (_path(shown), shown.references)]
    assert np.mean(both[0] != both[1]) < 0.03
    missing = overlays.draw_case(_written(tmp_path, truth, source_uri=uri + "x", mask_uris=[]), "worst", "seen")
    assert (missing.image, "no longer in the index" in missing.note) == ("", True)
    missing = overlays.draw_case(
        _written(tmp_path, truth, source_uri=f"{prepared}/no.tar#{name}", mask_uris=[]), "worst", ""
    )
    assert (missing.image, missing.note) == ("", f"{prepared}/no.tar is missing")


def test_image_and_reference_are_corrected_as_in_prediction(tmp_path: Path, draw_pair: DrawPair) -> None:
    """Bones dark, and a mask of half the size with a speck: what prediction put right is put right here, too."""
    image, mask = draw_pair(1, 360, 300)
    half = cv2.resize(mask * np.uint8(255), (150, 180), interpolation=cv2.INTER_AREA)
    half[:2, :2] = 255
    paths = {name: str(tmp_path / f"{name}.png") for name in ("image", "mask")}
    assert cv2.imwrite(paths["image"], image)
    assert cv2.imwrite(paths["mask"], half)
    row = _written(tmp_path, mask, source_uri=paths["image"], mask_uris=[paths["mask"]])
    shown = overlays.draw_case(row, "best", "unseen")
    assert shown.note == ""
    assert shown.references.count("M") == 2
    assert np.mean(_filled(shown.references, shown) != mask) < 0.02


def test_an_unusable_reference_is_noted(tmp_path: Path, draw_pair: DrawPair) -> None:
    image, mask = draw_pair(1, 64, 64)
    assert cv2.imwrite(str(tmp_path / "image.png"), image)
    row = _written(tmp_path, mask, source_uri=str(tmp_path / "image.png"), mask_uris=[str(tmp_path / "gone.png")])
    shown = overlays.draw_case(row, "worst", "unseen")
    assert shown.references == ""
    assert shown.note.startswith(f"reference mask: {tmp_path}/gone.png: cannot be read")
    assert shown.image


def test_references_of_several_classes_have_their_colours(tmp_path: Path, draw_pair: DrawPair) -> None:
    image, lungs = draw_pair(1, 96, 80)
    heart = np.zeros_like(lungs)
    cv2.ellipse(heart, (44, 60), (14, 12), 0, 0, 360, 1, -1)
    masks = {"heart": heart, "lung": lungs}
    for name, array in {"image": image, "heart": heart * 255, "lung": lungs * 255}.items():
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), array)
    values = dict.fromkeys(field.name for field in PREDICTIONS.field("classes").type.value_type)
    classes = [
        {**values, "class": name, "mask": codecs.encode_rle(mask), "area_px": int(mask.sum()), "dice": 1.0}
        for name, mask in masks.items()
    ]
    files = [str(tmp_path / f"{name}.png") for name in masks]
    source = str(tmp_path / "image.png")
    row = _written(tmp_path, lungs, source_uri=source, mask_uris=files, mask_classes=[*masks], classes=classes)
    shown = overlays.draw_case(row, "best", "unseen")
    assert (shown.note, shown.references) == ("", "")
    assert {outline.name: outline.colour for outline in shown.class_references} == {
        outline.name: outline.colour for outline in shown.outlines
    }
    assert len({outline.colour for outline in shown.class_references}) == 2
    for outline in shown.class_references:
        assert np.mean(_filled(outline.path, shown) != cv2.resize(masks[outline.name], (300, 360))) < 0.02


def test_an_empty_mask_has_no_outline(tmp_path: Path, draw_pair: DrawPair) -> None:
    image, mask = draw_pair(1, 64, 64)
    assert cv2.imwrite(str(tmp_path / "image.png"), image)
    row = _written(tmp_path, np.zeros_like(mask), source_uri=str(tmp_path / "image.png"), dice=None)
    shown = overlays.draw_case(row, "", "unseen")
    assert (shown.outlines, shown.references) == ((), "")
    assert shown.image
