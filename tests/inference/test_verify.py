"""Predictions checked against the masks that they store: whatever was changed is named, and nothing else."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lungseg import storage
from lungseg.config import InferSettings
from lungseg.errors import InputError
from lungseg.imaging import codecs
from lungseg.inference import verify
from lungseg.inference.rows import COMPARED
from lungseg.pipelines import infer

Row = dict[str, Any]


@pytest.fixture
def out(predicted: Path, tmp_path: Path) -> Path:
    """A copy of the predictions that a test may change."""
    return Path(shutil.copytree(predicted, tmp_path / "out"))


def predict(archive: Path, trained: Path, out: Path) -> None:
    infer.run(InferSettings(archive=str(archive), checkpoint=(str(trained),), out=str(out), part_size=3))


def edit(out: Path, change: Callable[[Row], object], name: str = "part-000000.parquet") -> str:
    """Change the first row of a part, and predictions.json so that it tells of the changed file; name the image."""
    path = out / name
    table = storage.read_table(str(path))
    rows = table.to_pylist()
    change(rows[0])
    storage.write_table(str(path), table.from_pylist(rows, table.schema))
    ended = json.loads((out / "predictions.json").read_text())
    for part in ended["parts"]:
        if part["name"] == name:
            part["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (out / "predictions.json").write_text(json.dumps(ended))
    return f"{path}, {rows[0]['image_id']}: "


def named(out: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Recompute, expecting differences; return what was named. No file may have changed."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="things are wrong, the first of them above; nothing was changed"):
        verify.run(str(out))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    return [record.message for record in caplog.records if record.levelname == "ERROR"]


def test_untouched_predictions_pass(predicted: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    verify.run(str(predicted))
    assert caplog.messages[-1] == f"{predicted}: 8 rows, every figure as it comes from the stored masks"


def test_the_job_does_it_with_verify(predicted: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    infer.run(InferSettings(out=str(predicted), verify=True))
    assert "8 rows, every figure" in caplog.text


def test_untouched_predictions_of_prepared_data_pass(
    without_ray: None, prepared: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predict(prepared, trained, tmp_path)
    caplog.set_level(logging.INFO)
    verify.run(str(tmp_path))
    assert "8 rows, every figure" in caplog.text


def test_rows_without_a_mask_pass(
    without_ray: None, own_archive: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    films = own_archive / "north" / "images"
    (films / "north_00.png").write_bytes(b"")
    (own_archive / "north" / "masks" / "north_01.png").write_bytes(b"")
    (films / "north_09.png").symlink_to("nowhere.png")
    predict(own_archive, trained, tmp_path / "out")
    caplog.set_level(logging.INFO)
    verify.run(str(tmp_path / "out"))
    assert "9 rows, every figure" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        *("area_px", "right_lung_px", "left_lung_px", "centroid_x_px", "centroid_y_px", "bbox", "components"),
        *("iou", "dice", "pixel_accuracy", "hd95_px", "assd_px"),
    ],
)
def test_a_changed_figure_is_named(name: str, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(row: Row) -> None:
        row[name] = [value + 1 for value in row[name]] if name == "bbox" else (row[name] or 0) + 1

    where = edit(out, change)
    (said,) = named(out, caplog)
    assert said.startswith(f"{where}{name} is ")
    assert ", its mask gives " in said


@pytest.mark.parametrize("value", [0.123456, None])
def test_a_dice_that_was_touched_up_or_taken_out_is_named(
    value: float | None, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = edit(out, lambda row: row.update(dice=value))
    assert any(said.startswith(f"{where}") for said in named(out, caplog))


def test_a_comparison_that_was_wiped_out_is_named(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = edit(out, lambda row: row.update(dict.fromkeys(COMPARED)))
    assert {said.removeprefix(where).split()[0] for said in named(out, caplog)} == set(COMPARED)


def test_the_last_bits_of_a_distance_may_differ_as_they_do_from_one_number_of_threads_to_another(
    out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    edit(out, lambda row: row.update(hd95_px=float(np.nextafter(np.float32(row["hd95_px"]), np.float32(1e9)))))
    verify.run(str(out))
    assert "every figure" in caplog.text


def test_a_figure_off_by_a_hundred_thousandth_is_named(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = edit(out, lambda row: row.update(centroid_x_px=row["centroid_x_px"] * (1 + 1e-5)))
    (said,) = named(out, caplog)
    assert said.startswith(f"{where}centroid_x_px is ")


def test_a_changed_mask_is_named_by_its_figures(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(row: Row) -> None:
        mask = codecs.decode_rle(row["mask"], row["height"], row["width"])
        row["mask"] = codecs.encode_rle(1 - mask)

    where = edit(out, change)
    said = named(out, caplog)
    assert all(one.startswith(where) for one in said)
    assert {"area_px", "dice", "iou"} <= {one.removeprefix(where).split()[0] for one in said}


def test_a_mask_of_one_pixel_less_is_named(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(row: Row) -> None:
        mask = codecs.decode_rle(row["mask"], row["height"], row["width"])
        mask[tuple(np.argwhere(mask)[0])] = 0
        row["mask"] = codecs.encode_rle(mask)

    where = edit(out, change)
    assert f"{where}area_px is " in "\n".join(named(out, caplog))


@pytest.mark.parametrize("counts", ["", "no mask", "00", "1" * 50, "oooooo", None])
def test_a_mask_that_is_none_is_named(counts: str | None, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = edit(out, lambda row: row.update(mask=counts))
    assert all(said.startswith(where) for said in named(out, caplog))


def test_a_mask_where_nothing_was_predicted_is_named(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = edit(out, lambda row: row.update(status="rejected"))
    first, account = named(out, caplog)
    assert first == f"{where}it has a mask, though it was not predicted"
    assert account.startswith("counts in predictions.json is ")


def test_a_file_that_is_another_is_named_though_its_figures_fit(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    ended = (out / "predictions.json").read_bytes()
    edit(out, lambda row: row.update(seconds=0.0), "part-000001.parquet")
    (out / "predictions.json").write_bytes(ended)
    assert named(out, caplog) == ["part-000001.parquet is not the file that predictions.json tells of"]


def test_a_part_without_its_masks_is_named(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(out / "part-000001.parquet")
    table = storage.read_table(path)
    storage.write_table(path, table.drop_columns(["mask"]))
    assert any(
        said.endswith("run the same jobs/infer.py") and "mask is not a column" in said for said in named(out, caplog)
    )


@pytest.mark.parametrize(
    ("name", "value"), [("counts", {"ok": 1000}), ("codes", [{"status": "failed", "code": "x", "images": 1}])]
)
def test_an_account_that_the_rows_do_not_give_is_named(
    name: str, value: Any, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ended = json.loads((out / "predictions.json").read_text())
    (out / "predictions.json").write_text(json.dumps({**ended, name: value}))
    (said,) = named(out, caplog)
    assert said.startswith(f"{name} in predictions.json is {value}, the rows give ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "xx"}, "model is xx, the plan says "),
        ({"threshold": 0.25}, "threshold is 0.25, the plan says 0.5"),
        ({"mean_probability": 5.0}, "mean_probability is 5.0, expected 0 to 1"),
        ({"height": 4_000_000}, "it is 4000000x"),
        ({"height": None}, "it is Nonex"),
        ({"geometry": None}, "its geometry cannot be read"),
    ],
)
def test_what_does_not_fit_the_rest_of_a_row_or_the_plan_is_named(
    change: Row, said: str, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = edit(out, lambda row: row.update(change))
    assert any(found.startswith(f"{where}{said}") for found in named(out, caplog))


@pytest.mark.parametrize(("name", "key"), [("predictions.json", "parts"), ("plan.json", "preprocess")])
def test_papers_that_no_inference_wrote_are_told_in_a_line(name: str, key: str, out: Path) -> None:
    content = json.loads((out / name).read_text())
    del content[key]
    (out / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"not as jobs/infer\.py writes it") as refused:
        verify.run(str(out))
    assert len(str(refused.value).splitlines()) == 1


def test_a_missing_part_is_named(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    (out / "part-000001.parquet").unlink()
    said = named(out, caplog)
    assert said[0].startswith(f"{out}/part-000001.parquet: cannot be read")
    assert said[1:] == ["5 rows, predictions.json says 8"]


def test_a_doubled_part_is_named_by_its_images(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(out / "part-000002.parquet", out / "part-000003.parquet")
    rows = storage.read_table(str(out / "part-000002.parquet")).to_pylist()
    doubled = [f"{row['image_id']} has 2 rows, expected one" for row in rows]
    assert named(out, caplog) == [*doubled, f"{8 + len(rows)} rows, predictions.json says 8"]


def test_a_part_of_other_images_is_named(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = out / "part-000003.parquet"
    shutil.copy(out / "part-000002.parquet", path)
    edit(out, lambda row: row.update(image_id="stranger"), path.name)
    assert any(said.endswith("rows, predictions.json says 8") for said in named(out, caplog))


def test_a_damaged_part_is_named_with_all_else_that_is_wrong(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = out / "part-000000.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    where = edit(out, lambda row: row.update(dice=0.5), "part-000001.parquet")
    said = named(out, caplog)
    assert said[0] == "part-000000.parquet is not the file that predictions.json tells of"
    assert said[1].startswith(f"{path}: not a Parquet file")
    assert said[2].startswith(f"{where}dice is 0.5, its mask gives ")
    assert said[3] == "5 rows, predictions.json says 8"


def test_predictions_that_were_not_finished_are_refused(out: Path, tmp_path: Path) -> None:
    (out / "predictions.json").unlink()
    for folder, said in ((out, r"no predictions\.json in it"), (tmp_path / "missing", "no such folder")):
        with pytest.raises(InputError, match=said):
            verify.run(str(folder))


@pytest.fixture
def own_out(without_ray: None, own_archive: Path, trained: Path, tmp_path: Path) -> Path:
    """Predictions of an archive that a test may change."""
    predict(own_archive, trained, tmp_path / "out")
    return tmp_path / "out"


def test_a_reference_mask_that_changed_is_named(
    own_out: Path, own_archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = own_archive / "south" / "masks" / "south_01.png"
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    assert cv2.imwrite(str(path), cv2.dilate(mask, np.ones((3, 3), np.uint8)))
    said = named(own_out, caplog)
    assert all(one.startswith(f"{own_out}/part-000002.parquet, south_01: ") for one in said)
    assert {"dice", "iou", "pixel_accuracy"} <= {one.split(": ")[1].split()[0] for one in said}


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_reference_mask_or_image_that_cannot_be_read_any_more_is_named(
    kind: str, own_out: Path, own_archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (own_archive / "south" / kind / "south_01.png").unlink()
    (said,) = named(own_out, caplog)
    where = f"{own_out}/part-000002.parquet, south_01: "
    assert said.startswith(
        f"{where}its reference mask cannot be read any more ({own_archive}/south/{kind}/south_01.png: "
    )


def test_a_sample_that_has_gone_or_is_damaged_is_named(
    without_ray: None, own_prepared: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    predict(own_prepared, trained, out)
    where = edit(out, lambda row: row.update(source_uri=row["source_uri"].replace("north_00", "north_77")))
    tar = own_prepared / "south" / "south-000001.tar"
    index = storage.read_table(str(tar.with_name("index.parquet"))).to_pylist()
    content = bytearray(tar.read_bytes())
    content[index[2]["mask_offset"] + 50] ^= 0xFF
    tar.write_bytes(content)
    gone, damaged = named(out, caplog)
    assert gone.startswith(where)
    assert gone.endswith("#north_77 has gone")
    place = f"{out}/part-000002.parquet, south_02: "
    assert damaged.startswith(f"{place}its reference mask cannot be read any more ({tar}#south_02: ")


def test_prepared_data_that_has_gone_is_named(
    without_ray: None, own_prepared: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    predict(own_prepared, trained, out)
    (own_prepared / "south" / "south-000001.tar").unlink()
    said = named(out, caplog)
    assert len(said) == 3
    assert all("south-000001.tar: 0 bytes, expected" in one for one in said)


def test_no_more_than_twenty_are_told(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(row: Row) -> None:
        names = ("area_px", "components", "left_lung_px", "right_lung_px", "dice", "iou", "hd95_px", "pixel_accuracy")
        row.update(dict.fromkeys(names, -1))

    for number in range(3):
        edit(out, change, f"part-{number:06d}.parquet")
    assert len(named(out, caplog)) == 20
