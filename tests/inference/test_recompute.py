"""Verification of predictions: every change is reported, and nothing else."""

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
from lungseg.inference import recompute
from lungseg.inference.comparison import COMPARED
from lungseg.pipelines import infer

Row = dict[str, Any]


@pytest.fixture
def out(predicted: Path, tmp_path: Path) -> Path:
    """A copy of the predictions that a test may change."""
    return Path(shutil.copytree(predicted, tmp_path / "out"))


def predict(archive: Path, trained: Path, out: Path) -> None:
    infer.run(InferSettings(archive=str(archive), checkpoint=(str(trained),), out=str(out), part_size=3))


def edit(out: Path, change: Callable[[Row], object], name: str = "part-000000.parquet") -> str:
    """Change the first row of a part and its digest in predictions.json; return the prefix of its problems."""
    path = out / "rows" / name
    table = storage.read_table(str(path))
    rows = table.to_pylist()
    change(rows[0])
    storage.write_table(str(path), table.from_pylist(rows, table.schema))
    summary = json.loads((out / "predictions.json").read_text())
    for part in summary["parts"]:
        if part["name"] == name:
            part["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (out / "predictions.json").write_text(json.dumps(summary))
    return f"{path}, {rows[0]['image_id']}: "


def problems_of(out: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Verify, and return the problems that were logged. No file may change."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"problems? found, the first are listed above; no file was changed"):
        recompute.run(str(out))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    return [record.message for record in caplog.records if record.levelname == "ERROR"]


def test_unchanged_predictions_pass(predicted: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    recompute.run(str(predicted))
    assert caplog.messages[-1] == f"{predicted}: verified 8 rows: all values match the stored masks"


def test_infer_with_verify_verifies(predicted: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    infer.run(InferSettings(out=str(predicted), verify=True))
    assert "verified 8 rows: all values match" in caplog.text


def test_unchanged_predictions_of_prepared_data_pass(
    without_ray: None, prepared: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predict(prepared, trained, tmp_path)
    caplog.set_level(logging.INFO)
    recompute.run(str(tmp_path))
    assert "verified 8 rows: all values match" in caplog.text


def test_rows_without_a_mask_pass(
    without_ray: None, own_archive: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    films = own_archive / "north" / "images"
    (films / "north_00.png").write_bytes(b"")
    (own_archive / "north" / "masks" / "north_01.png").write_bytes(b"")
    (films / "north_09.png").symlink_to("nowhere.png")
    predict(own_archive, trained, tmp_path / "out")
    caplog.set_level(logging.INFO)
    recompute.run(str(tmp_path / "out"))
    assert "verified 9 rows: all values match" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        *("area_px", "right_lung_px", "left_lung_px", "centroid_x_px", "centroid_y_px", "bbox", "components"),
        *("iou", "dice", "pixel_accuracy", "hd95_px", "assd_px"),
    ],
)
def test_changed_value_is_reported(name: str, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(row: Row) -> None:
        row[name] = [value + 1 for value in row[name]] if name == "bbox" else (row[name] or 0) + 1

    prefix = edit(out, change)
    (problem,) = problems_of(out, caplog)
    assert problem.startswith(f"{prefix}{name} is ")
    assert ", but the mask gives " in problem


def test_changed_flags_of_a_mask_are_reported(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(row: Row) -> None:
        row["flags"] = [*(flag for flag in row["flags"] if not flag.startswith("lungs_")), "lungs_empty"]

    prefix = edit(out, change)
    problems = problems_of(out, caplog)
    assert problems[0].startswith(f"{prefix}flags is ['lungs_empty'], but the mask gives ")
    assert problems[1].startswith("flags in predictions.json is ")


@pytest.mark.parametrize("value", [0.123456, None])
def test_changed_or_removed_dice_is_reported(value: float | None, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = edit(out, lambda row: row.update(dice=value))
    assert any(problem.startswith(f"{prefix}") for problem in problems_of(out, caplog))


def test_removed_metrics_are_reported(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = edit(out, lambda row: row.update(dict.fromkeys(COMPARED)))
    assert {problem.removeprefix(prefix).split()[0] for problem in problems_of(out, caplog)} == set(COMPARED)


def test_last_bits_of_a_distance_may_differ(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    edit(out, lambda row: row.update(hd95_px=float(np.nextafter(np.float32(row["hd95_px"]), np.float32(1e9)))))
    recompute.run(str(out))
    assert "all values match" in caplog.text


def test_relative_error_of_1e_5_is_reported(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = edit(out, lambda row: row.update(centroid_x_px=row["centroid_x_px"] * (1 + 1e-5)))
    (problem,) = problems_of(out, caplog)
    assert problem.startswith(f"{prefix}centroid_x_px is ")


def test_changed_mask_is_reported_by_its_values(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(row: Row) -> None:
        mask = codecs.decode_rle(row["mask"], row["height"], row["width"])
        row["mask"] = codecs.encode_rle(1 - mask)

    prefix = edit(out, change)
    problems = problems_of(out, caplog)
    assert all(problem.startswith(prefix) for problem in problems)
    assert {"area_px", "dice", "iou"} <= {problem.removeprefix(prefix).split()[0] for problem in problems}


def test_mask_with_one_pixel_less_is_reported(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(row: Row) -> None:
        mask = codecs.decode_rle(row["mask"], row["height"], row["width"])
        mask[tuple(np.argwhere(mask)[0])] = 0
        row["mask"] = codecs.encode_rle(mask)

    prefix = edit(out, change)
    assert f"{prefix}area_px is " in "\n".join(problems_of(out, caplog))


@pytest.mark.parametrize("counts", ["", "no mask", "00", "1" * 50, "oooooo", None])
def test_invalid_mask_is_reported(counts: str | None, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = edit(out, lambda row: row.update(mask=counts))
    assert all(problem.startswith(prefix) for problem in problems_of(out, caplog))


def test_mask_of_a_rejected_image_is_reported(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = edit(out, lambda row: row.update(status="rejected"))
    first, counts, *flags = problems_of(out, caplog)
    assert first == f"{prefix}status is rejected, but the row has a mask"
    assert counts.startswith("counts in predictions.json is ")
    assert [line.split()[0] for line in flags] == ["flagged", "flags"]


def test_other_file_with_consistent_values_is_reported(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    summary = (out / "predictions.json").read_bytes()
    edit(out, lambda row: row.update(seconds=0.0), "part-000001.parquet")
    (out / "predictions.json").write_bytes(summary)
    assert problems_of(out, caplog) == ["part-000001.parquet does not match its digest in predictions.json"]


def test_part_without_mask_column_is_reported(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(out / "rows" / "part-000001.parquet")
    table = storage.read_table(path)
    storage.write_table(path, table.drop_columns(["mask"]))
    assert any(
        "column mask is missing" in problem and problem.endswith("run the same lungseg infer command again")
        for problem in problems_of(out, caplog)
    )


@pytest.mark.parametrize(
    ("name", "value"), [("counts", {"ok": 1000}), ("codes", [{"status": "failed", "code": "x", "images": 1}])]
)
def test_wrong_counts_are_reported(name: str, value: Any, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    summary = json.loads((out / "predictions.json").read_text())
    (out / "predictions.json").write_text(json.dumps({**summary, name: value}))
    (problem,) = problems_of(out, caplog)
    assert problem.startswith(f"{name} in predictions.json is {value}, but the rows give ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "xx"}, "model is xx, but the plan has "),
        ({"threshold": 0.25}, "threshold is 0.25, but the plan has 0.5"),
        ({"mean_probability": 5.0}, "mean_probability is 5.0, expected 0 to 1"),
        ({"height": 4_000_000}, "size is 4000000x"),
        ({"height": None}, "size is Nonex"),
        ({"geometry": None}, "geometry cannot be read"),
    ],
)
def test_inconsistent_row_is_reported(change: Row, message: str, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = edit(out, lambda row: row.update(change))
    assert any(problem.startswith(f"{prefix}{message}") for problem in problems_of(out, caplog))


@pytest.mark.parametrize(("name", "key"), [("predictions.json", "parts"), ("plan.json", "preprocess")])
def test_damaged_json_files_are_refused_in_one_line(name: str, key: str, out: Path) -> None:
    content = json.loads((out / name).read_text())
    del content[key]
    (out / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{name}: {key} is missing") as refused:
        recompute.run(str(out))
    assert len(str(refused.value).splitlines()) == 1


def test_missing_part_is_reported(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    (out / "rows" / "part-000001.parquet").unlink()
    problems = problems_of(out, caplog)
    assert problems[0].startswith(f"{out}/rows/part-000001.parquet: cannot be read")
    assert problems[1:] == ["5 rows, but predictions.json has 8"]


def test_copied_part_is_reported_by_its_images(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(out / "rows" / "part-000002.parquet", out / "rows" / "part-000003.parquet")
    rows = storage.read_table(str(out / "rows" / "part-000002.parquet")).to_pylist()
    doubled = [f"{row['image_id']} has 2 rows, expected one" for row in rows]
    assert problems_of(out, caplog) == [*doubled, f"{8 + len(rows)} rows, but predictions.json has 8"]


def test_part_of_other_images_is_reported(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = out / "rows" / "part-000003.parquet"
    shutil.copy(out / "rows" / "part-000002.parquet", path)
    edit(out, lambda row: row.update(image_id="stranger"), path.name)
    assert any(problem.endswith("rows, but predictions.json has 8") for problem in problems_of(out, caplog))


def test_damaged_part_is_reported_with_other_problems(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = out / "rows" / "part-000000.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    prefix = edit(out, lambda row: row.update(dice=0.5), "part-000001.parquet")
    problems = problems_of(out, caplog)
    assert problems[0] == "part-000000.parquet does not match its digest in predictions.json"
    assert problems[1].startswith(f"{path}: not a Parquet file")
    assert problems[2].startswith(f"{prefix}dice is 0.5, but the mask gives ")
    assert problems[3] == "5 rows, but predictions.json has 8"


def test_unfinished_predictions_are_refused(out: Path, tmp_path: Path) -> None:
    (out / "predictions.json").unlink()
    for folder, message in ((out, r"has no predictions\.json"), (tmp_path / "missing", "no such folder")):
        with pytest.raises(InputError, match=message):
            recompute.run(str(folder))


@pytest.fixture
def own_out(without_ray: None, own_archive: Path, trained: Path, tmp_path: Path) -> Path:
    """Predictions of an archive that a test may change."""
    predict(own_archive, trained, tmp_path / "out")
    return tmp_path / "out"


def test_changed_reference_mask_is_reported(own_out: Path, own_archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = own_archive / "south" / "masks" / "south_01.png"
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    assert cv2.imwrite(str(path), cv2.dilate(mask, np.ones((3, 3), np.uint8)))
    problems = problems_of(own_out, caplog)
    assert all(problem.startswith(f"{own_out}/rows/part-000002.parquet, south_01: ") for problem in problems)
    assert {"dice", "iou", "pixel_accuracy"} <= {problem.split(": ")[1].split()[0] for problem in problems}


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_unreadable_reference_mask_or_image_is_reported(
    kind: str, own_out: Path, own_archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (own_archive / "south" / kind / "south_01.png").unlink()
    (problem,) = problems_of(own_out, caplog)
    prefix = f"{own_out}/rows/part-000002.parquet, south_01: "
    assert problem.startswith(
        f"{prefix}the reference mask can no longer be read ({own_archive}/south/{kind}/south_01.png: "
    )


def test_missing_or_damaged_sample_is_reported(
    without_ray: None, own_prepared: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    predict(own_prepared, trained, out)
    prefix = edit(out, lambda row: row.update(source_uri=row["source_uri"].replace("north_00", "north_77")))
    tar = own_prepared / "south" / "south-000001.tar"
    index = storage.read_table(str(tar.with_name("index.parquet"))).to_pylist()
    content = bytearray(tar.read_bytes())
    content[index[2]["mask_offset"] + 50] ^= 0xFF
    tar.write_bytes(content)
    gone, damaged = problems_of(out, caplog)
    assert gone.startswith(prefix)
    assert gone.endswith("#north_77 no longer exists")
    place = f"{out}/rows/part-000002.parquet, south_02: "
    assert damaged.startswith(f"{place}the reference mask can no longer be read ({tar}#south_02: ")


def test_missing_tar_is_reported(
    without_ray: None, own_prepared: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    predict(own_prepared, trained, out)
    (own_prepared / "south" / "south-000001.tar").unlink()
    problems = problems_of(out, caplog)
    assert len(problems) == 3
    assert all("south-000001.tar: 0 bytes, expected" in problem for problem in problems)


def test_at_most_twenty_problems_are_logged(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(row: Row) -> None:
        names = ("area_px", "components", "left_lung_px", "right_lung_px", "dice", "iou", "hd95_px", "pixel_accuracy")
        row.update(dict.fromkeys(names, -1))

    for number in range(3):
        edit(out, change, f"part-{number:06d}.parquet")
    assert len(problems_of(out, caplog)) == 20
