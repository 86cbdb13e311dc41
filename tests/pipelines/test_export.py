"""Predictions as files of other tools: chosen by a query, read back by who would open them."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from lungseg import storage
from lungseg.config import ExportSettings
from lungseg.errors import InputError, SettingsError
from lungseg.export.writers import draw_overlay
from lungseg.imaging import codecs
from lungseg.inference.part_plan import write_part
from lungseg.pipelines import export
from lungseg.predictions.parts import part_path
from lungseg.schema import PREDICTIONS
from lungseg.storage.files import digest_bytes
from tests.imaging.dicom.dicom_files import write_dicom

Row = dict[str, Any]


def row_of(image_id: str, source: str, mask: Any, **changes: Any) -> Row:
    values = dict.fromkeys(PREDICTIONS.names)
    height, width = mask.shape
    ys, xs = np.nonzero(mask)
    box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1] if xs.size else []
    return {
        **values,
        "image_id": image_id,
        "dataset": "north",
        "source_uri": source,
        "mask_uris": [],
        "status": "ok",
        "codes": [],
        "message": "",
        "height": height,
        "width": width,
        "mask": codecs.encode_rle(mask),
        "area_px": int(mask.sum()),
        "bbox": box,
        "mean_probability": 0.9,
        "model": "feed",
        **changes,
    }


@pytest.fixture
def predictions(tmp_path: Path, draw_pair: Any) -> Path:
    """Two parts: two PNG, one DICOM, one empty mask, one that failed."""
    folder, rows = tmp_path / "predictions", []
    for number in range(2):
        image, mask = draw_pair(number, 90 + number, 80)
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), image)
        rows.append(row_of(f"png_{number}", str(path), mask, dice=0.8 + 0.1 * number))
    image, mask = draw_pair(7, 64, 72)
    (tmp_path / "x.dcm").write_bytes(
        write_dicom(
            image.astype(np.uint16), StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4", SOPInstanceUID="1.2.5"
        )
    )
    rows.append(row_of("radiograph", str(tmp_path / "x.dcm"), mask, dice=0.95))
    rows.append(row_of("empty", str(tmp_path / "0.png"), np.zeros((90, 80), np.uint8)))
    torn = row_of("torn", str(tmp_path / "none.png"), mask, status="rejected", codes=["undecodable"])
    rows.append({**torn, "mask": None, "bbox": None, "area_px": None})
    for number, part in enumerate((rows[:2], rows[2:])):
        write_part(part_path(str(folder), number), part, "digest")
    finish(folder, tmp_path / "films")
    return folder


def finish(folder: Path, archive: Path) -> None:
    """Write what a finished inference says of its parts."""
    told = [{"name": path.name, "sha256": digest_bytes(path.read_bytes())} for path in folder.glob("*.parquet")]
    storage.write_json(str(folder / "predictions.json"), {"parts": told})
    storage.write_json(str(folder / "plan.json"), {"archive": str(archive)})


def run(predictions: Path, out: Path, *formats: str, where: str = "") -> None:
    export.run(ExportSettings(predictions=str(predictions), out=str(out), formats=formats, where=where))  # type: ignore[arg-type]


def test_every_format_can_be_read_back(ray_cluster: None, predictions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(predictions, out, "masks", "overlays", "coco", "dicom-seg")
    rows = {
        row["image_id"]: row
        for part in (0, 1)
        for row in storage.read_table(part_path(str(predictions), part)).to_pylist()
    }
    masks = {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (out / "masks" / "north").iterdir()}
    assert set(masks) == {"png_0", "png_1", "radiograph", "empty"}
    for name, found in masks.items():
        assert (found == 255 * codecs.decode_rle(rows[name]["mask"], *found.shape)).all()
    assert {path.name for path in (out / "overlays" / "north").iterdir()} == {f"{name}.png" for name in masks}
    assert {path.name for path in (out / "dicom-seg" / "north").iterdir()} == {"radiograph.dcm"}
    coco = COCO(str(out / "annotations.json"))
    assert len(coco.imgs) == 4
    assert len(coco.anns) == 3  # an empty mask has none
    for annotation in coco.anns.values():
        row = rows[coco.imgs[annotation["image_id"]]["lungseg_id"].split("/")[1]]
        assert (coco.annToMask(annotation) == codecs.decode_rle(row["mask"], row["height"], row["width"])).all()
        assert (annotation["area"], annotation["bbox"]) == (row["area_px"], row["bbox"])


def test_exports_of_two_queries_are_not_mixed(
    ray_cluster: None, predictions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    run(predictions, out, "masks", where="dice < 0.85")
    run(predictions, out, "coco", where="dice < 0.85")  # the same rows in one format more
    with pytest.raises(InputError, match=r"holds another export \(where changed\): pass another --out, or delete it"):
        run(predictions, out, "masks")
    (tmp_path / "mine" / "masks" / "north").mkdir(parents=True)
    with pytest.raises(InputError, match=r"masks holds files, but there is no export\.json"):
        run(predictions, tmp_path / "mine", "masks")
    assert not (tmp_path / "mine" / "export.json").exists()
    run(predictions, tmp_path / "none", "masks", where="dice < 0")
    assert "no row was chosen" in caplog.text


def test_mask_that_cannot_be_decoded_is_one_error(ray_cluster: None, predictions: Path, tmp_path: Path) -> None:
    path = Path(part_path(str(predictions), 0))
    table = storage.read_table(str(path))
    rows = [{**row, "mask": "no run lengths"} for row in table.to_pylist()]
    storage.write_table(str(path), table.from_pylist(rows, table.schema))
    finish(predictions, tmp_path / "films")
    with pytest.raises(InputError, match="the mask of png_0 cannot be decoded"):
        run(predictions, tmp_path / "out", "masks")


def test_query_selects_rows(
    ray_cluster: None, predictions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(predictions, tmp_path / "out", "masks", where="dice < 0.92 and dataset == 'north'")
    assert {path.stem for path in (tmp_path / "out" / "masks" / "north").iterdir()} == {"png_0", "png_1"}
    assert "2 of 5 rows chosen" in caplog.text
    assert not (tmp_path / "out" / "annotations.json").exists()


def test_missing_image_is_reported_and_others_are_written(
    ray_cluster: None, predictions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.png").unlink()
    run(predictions, tmp_path / "out", "overlays")
    assert {path.stem for path in (tmp_path / "out" / "overlays" / "north").iterdir()} == {
        "png_0",
        "radiograph",
        "empty",
    }
    assert "no overlays of png_1" in caplog.text


def test_format_without_any_file_is_an_error(ray_cluster: None, predictions: Path, tmp_path: Path) -> None:
    said = r"^not one of 2 rows could be exported as dicom-seg: no dicom-seg of png_[01]: .*is not a DICOM file"
    with pytest.raises(InputError, match=said):
        run(predictions, tmp_path / "out", "masks", "dicom-seg", where="image_id in ('png_0', 'png_1')")
    assert len(list((tmp_path / "out" / "masks" / "north").iterdir())) == 2


def test_name_that_leaves_the_folder_is_refused(
    ray_cluster: None, predictions: Path, tmp_path: Path, draw_pair: Any
) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(predictions, hostile)
    _, mask = draw_pair(1, 40, 40)
    write_part(part_path(str(hostile), 0), [row_of("../../../escaped", str(tmp_path / "0.png"), mask)], "digest")
    finish(hostile, tmp_path / "films")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="leaves its folder"):
        run(hostile, tmp_path / "deep" / "out", "masks")
    new = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert all(tmp_path / "deep" in path.parents for path in new)


def test_wrong_settings_are_refused(predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--predictions"):
        export.run(ExportSettings())
    with pytest.raises(InputError, match="no such folder"):
        run(tmp_path / "none", tmp_path / "out", "masks")
    for query in ("dicee < 1", "dice <", "import os", "1 +"):
        with pytest.raises(SettingsError, match="the columns are image_id"):
            run(predictions, tmp_path / "out", "masks", where=query)


def test_images_and_references_are_not_overwritten(
    ray_cluster: None, predictions: Path, tmp_path: Path, draw_pair: Any
) -> None:
    with pytest.raises(InputError, match=r"--out .*films/deep lies in the archive .*films: pass a folder outside"):
        run(predictions, tmp_path / "films" / "deep", "masks")
    reference = tmp_path / "masks" / "north" / "mine.png"
    reference.parent.mkdir(parents=True)
    reference.write_bytes(b"drawn by hand")
    row = row_of("mine", str(tmp_path / "0.png"), draw_pair(1, 40, 40)[1], mask_uris=[str(reference)])
    write_part(part_path(str(predictions), 0), [row], "digest")
    finish(predictions, tmp_path / "list.csv")
    run(predictions, tmp_path, "coco")  # takes the folder
    with pytest.raises(InputError, match=r"mine.png is what was predicted or compared with: pass another --out"):
        run(predictions, tmp_path, "masks")
    assert reference.read_bytes() == b"drawn by hand"


def test_overlay_shows_the_image_under_outlines(draw_pair: Any) -> None:
    picture, mask = draw_pair(3, 300, 200)
    drawn = draw_overlay(picture, mask, None, 150)
    assert drawn.shape == (150, 100, 3)
    orange = drawn[..., 2].astype(int) - drawn[..., 0] > 60
    assert 0 < orange.sum() < 0.2 * orange.size
    grey = (np.ptp(drawn.astype(int), axis=2) == 0).mean()
    assert grey > 0.6
    assert draw_overlay(picture, mask, mask, 9999).shape == (300, 200, 3)


def test_no_rows_give_an_empty_coco_file(ray_cluster: None, predictions: Path, tmp_path: Path) -> None:
    run(predictions, tmp_path / "out", "coco", where="dice > 2")
    found = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert (found["images"], found["annotations"]) == ([], [])
