import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import ReportSettings
from lungseg.errors import InputError, SettingsError
from lungseg.imaging import codecs
from lungseg.metrics import segmentation
from lungseg.pipelines import report
from lungseg.schema import PREDICTIONS, SCHEMA, STUDY_ROWS, TEST_ROWS, Counts, table
from lungseg.study import cross_dataset

U8 = NDArray[np.uint8]
DrawPair = Callable[[int, int, int], tuple[U8, U8]]
Row = dict[str, Any]

HOSTILE = "<script>alert(1)</script>"
DICE = {"pooled-fold0": (0.9, 0.8, 0.5, 0.7), "pooled-fold1": (0.95, 0.85)}


def _tested(run: str, number: int, dice: float, dataset: str = "north", role: str = "held-out") -> Row:
    tp = round(1000 * dice)
    counts = Counts(tp, 2000 - 2 * tp, 0, 8000)
    return {
        "run": run,
        "image_id": f"{run[-1]}_{number}",
        "dataset": dataset,
        "patient_id": f"p{number}",
        "role": role,
        "tp": counts.tp,
        "fp": counts.fp,
        "fn": counts.fn,
        "tn": counts.tn,
        "dice": segmentation.dice(counts),
        "iou": segmentation.iou(counts),
        "pixel_accuracy": segmentation.pixel_accuracy(counts),
    }


def _write_run(folder: Path, name: str, rows: list[Row], train_on: list[str], epochs: int = 3) -> None:
    whole = [{**dict.fromkeys(TEST_ROWS.names), **row} for row in rows]
    storage.write_table(str(folder / "tested.parquet"), table(whole, TEST_ROWS))
    storage.write_json(
        str(folder / "run.json"),
        {
            "run": name,
            "protocol": "pooled",
            "train_on": train_on,
            "fold": int(name[-1]),
            "folds": 2,
            "epochs": epochs,
            "trained_images": 6,
            "resolution": "64 px",
            "threshold": 0.5,
            "aggregation": "mean over images",
            "input": "64 px",
            "tested": [],
            "settings": {"model": {"encoder": "tiny"}, "choose_threshold": False, "epochs": epochs},
        },
    )


def _write_curve(folder: Path, name: str, epochs: int) -> None:
    rows = [{"run": name, "epoch": n, "loss": 1 / n, "held_out_dice": 1 - 0.3 / n} for n in range(1, epochs + 1)]
    storage.write_bytes(str(folder / "metrics.jsonl"), "".join(json.dumps(row) + "\n" for row in rows).encode())


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of two finished runs on one data set, and a third that has done one epoch."""
    folder = tmp_path / "runs" / "trial"
    for name, dice in DICE.items():
        rows = [_tested(name, number, value) for number, value in enumerate(dice)]
        _write_run(folder / name, name, rows, ["north"])
        _write_curve(folder / name, name, 3)
    _write_curve(folder / "pooled-fold2", "pooled-fold2", 1)
    names = [*DICE, "pooled-fold2"]
    storage.write_json(str(folder / "study.json"), {"study": "trial", "runs": names, "settings": {}})
    _write_rows(folder, "pooled", "north", ["pooled-fold0", "pooled-fold1"])
    return folder


def _write_rows(folder: Path, protocol: str, train_on: str, names: list[str], cross: float | None = None) -> None:
    """Write study.parquet of these runs; `cross`: Dice of each on two images of a data set that it never saw."""
    rows = []
    for name in names:
        tested = storage.read_table(str(folder / name / "tested.parquet")).to_pylist()
        if cross is not None:
            more = [_tested(name, number, cross + number / 100, "south", "cross") for number in range(2)]
            tested += [{**dict.fromkeys(TEST_ROWS.names), **row, "image_id": f"s{i}"} for i, row in enumerate(more)]
        rows += cross_dataset.study_rows(tested, protocol, [train_on], int(name[-1]))
    storage.write_table(str(folder / "study.parquet"), table(rows, STUDY_ROWS))


def test_page_begins_with_matrix_and_gap(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write_rows(study, "source-to-source", "north", ["pooled-fold0", "pooled-fold1"], cross=0.5)
    made, page = _run(study)
    shown = capsys.readouterr().out
    found = made["study"]["results"]
    own, other = found["cells"]
    assert (own["role"], own["images"], other["role"], other["images"]) == ("held-out", 6, "cross", 2)
    assert own["dice"] == pytest.approx(np.mean([value for values in DICE.values() for value in values]))
    (gap,) = found["gaps"]
    assert gap["gap"] == pytest.approx(own["dice"] - other["dice"])
    for text in (page, shown):
        assert f"{own['dice']:.3f} [" in text
        assert "south" in text
    assert f"{gap['gap']:.4f}" in page
    assert page.index("The generalisation gap") < page.index("<h3>Trained on north")
    assert f"gap {gap['gap']:.3f}" in shown


def test_other_study_is_compared_image_by_image(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(study, tmp_path / "runs" / "other")
    content = json.loads((other / "study.json").read_text())
    (other / "study.json").write_text(json.dumps({**content, "study": "other"}))
    _write_rows(study, "source-to-source", "north", ["pooled-fold0", "pooled-fold1"], cross=0.5)
    _write_rows(other, "source-to-source", "north", ["pooled-fold0", "pooled-fold1"], cross=0.6)
    made, page = _run(study, compare_with=(str(other),))
    held_out, cross = made["study"]["against"]
    assert (held_out["images"], held_out["difference"]) == (6, 0.0)
    assert cross["difference"] == pytest.approx(cross["dice"] - cross["other_dice"]) == pytest.approx(-0.1, abs=0.01)
    shown = capsys.readouterr().out
    for text in (page, shown):
        assert f"{cross['difference']:.4f}" in text
        assert "Against other studies" in text


def test_study_without_shared_images_is_refused(study: Path, tmp_path: Path) -> None:
    other = shutil.copytree(study, tmp_path / "runs" / "other")
    _write_rows(other, "pooled", "south", ["pooled-fold0"])
    with pytest.raises(InputError, match=r"other: no run of trial and of this study was trained on the same data sets"):
        _run(study, compare_with=(str(other),))


def _predicted(folder: Path, number: int, pair: tuple[U8, U8], **changes: Any) -> Row:
    """A row of infer, its files written: the prediction is the mask moved by a few pixels, more with each number."""
    image, truth = pair
    mask = np.roll(truth, number, axis=0)
    for kind, array in (("images", image), ("masks", truth * np.uint8(255))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / kind / f"{number}.png"), array)
    counts = segmentation.count_pixels(mask, truth)
    hd95, assd = segmentation.surface_distances(mask, truth)
    row = {
        "image_id": f"image_{number}",
        "dataset": "north",
        "patient_id": "secret-patient",
        "status": "ok",
        "codes": [],
        "message": "",
        "source_uri": str(folder / "images" / f"{number}.png"),
        "mask_uris": [str(folder / "masks" / f"{number}.png")],
        "height": image.shape[0],
        "width": image.shape[1],
        "mask": codecs.encode_rle(mask),
        "area_px": int(mask.sum()),
        "components": 2,
        "iou": segmentation.iou(counts),
        "dice": segmentation.dice(counts),
        "threshold": 0.5,
        "model": "feed",
        "pixel_accuracy": segmentation.pixel_accuracy(counts),
        "hd95_px": hd95,
        "assd_px": assd,
        "seen_in_training": False,
    }
    return {**row, **changes}


def _without_reference(row: Row) -> Row:
    names = ("iou", "dice", "pixel_accuracy", "hd95_px", "assd_px")
    return {**row, **dict.fromkeys(names), "mask_uris": []}


def _not_predicted(image_id: str, status: str, code: str) -> Row:
    known = {"image_id": image_id, "dataset": "north", "source_uri": f"/gone/{image_id}.png", "mask_uris": []}
    return {**dict.fromkeys(PREDICTIONS.names), **known, "status": status, "codes": [code], "threshold": 0.5}


def _write_predictions(folder: Path, rows: list[Row], planned: int | None = None) -> None:
    """Write infer's folder, two rows a part; interrupted where more was planned."""
    for part, start in enumerate(range(0, len(rows), 2)):
        path = str(folder / f"part-{part:06d}.parquet")
        whole = [{**dict.fromkeys(PREDICTIONS.names), **row} for row in rows[start : start + 2]]
        storage.write_table(path, table(whole, PREDICTIONS))
    plan = {
        "archive": "/archive",
        "checkpoints": ["/runs"],
        "model": "feed",
        "runs": ["pooled-fold0"],
        "epochs": [3],
        "threshold": 0.5,
        "tta": "none",
        "postprocess": {"lungs": False},
        "images": planned or len(rows),
    }
    storage.write_json(str(folder / "plan.json"), plan)
    if planned is None:
        storage.write_json(str(folder / "predictions.json"), {"images": len(rows)})


@pytest.fixture
def rows(tmp_path: Path, draw_pair: DrawPair) -> list[Row]:
    """Four images that the model never saw, two that it did, one without a reference, two not predicted."""
    pairs = [draw_pair(number, 96, 80 + 4 * number) for number in range(7)]
    made = [_predicted(tmp_path / "archive", number, pair) for number, pair in enumerate(pairs)]
    for row in made[4:6]:
        row["seen_in_training"] = True
    made[6] = {**_without_reference(made[6]), "codes": ["mask_size"]}
    bad = [_not_predicted("torn", "rejected", "undecodable"), _not_predicted("lost", "failed", "unreadable")]
    return [*made, *bad]


def _run(study: Path, **values: Any) -> tuple[Row, str]:
    report.run(ReportSettings(study=str(study), **values))
    out = Path(values.get("out") or study)
    return json.loads((out / "report.json").read_text()), (out / "report.html").read_text()


def test_report_json_has_the_study(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers, page = _run(study)
    (made,) = numbers["study"]["tables"]
    first = {row["run"]: row for row in made["rows"]}["pooled-fold0"]
    dice = [_tested("pooled-fold0", 0, value)["dice"] for value in DICE["pooled-fold0"]]
    assert first["images"] == 4
    assert first["dice"] == pytest.approx(np.mean(dice))
    assert first["dice_p5"] == pytest.approx(np.percentile(dice, 5))
    assert first["dice_min"] == pytest.approx(0.5)
    assert first["dice_low"] < first["dice"] < first["dice_high"]
    (joint,) = made["all_runs"]
    assert joint["images"] == 6
    assert joint["dice"] == pytest.approx(np.mean([*dice, 0.95, 0.85]))
    assert (made["resolution"], made["threshold"], made["aggregation"]) == ("64 px", 0.5, "mean over images")
    assert numbers["schema"] == SCHEMA
    assert numbers["predictions"] is None
    shown = capsys.readouterr().out
    for text in (shown, page):
        assert f"{joint['dice']:.4f}" in text
        assert "at 64 px, threshold 0.5" in text


def test_unfinished_run_is_a_row(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers, page = _run(study)
    assert numbers["study"]["unfinished"] == [{"run": "pooled-fold2", "state": "not finished", "epochs": 1}]
    assert re.search(r"pooled-fold2 +not finished +1", capsys.readouterr().out)
    assert "1 of 3 runs not finished" in page
    assert page.count("<polyline") == 6


def test_report_json_has_the_predictions(study: Path, rows: list[Row], tmp_path: Path) -> None:
    _write_predictions(tmp_path / "predictions", rows)
    numbers, page = _run(study, predictions=str(tmp_path / "predictions"), out=str(tmp_path / "out"))
    found = numbers["predictions"]
    unseen, seen = found["rows"]
    assert (unseen["training"], unseen["images"], unseen["without_reference"]) == ("unseen", 5, 1)
    assert (seen["training"], seen["images"], seen["without_reference"]) == ("seen", 2, 0)
    for line, part in ((unseen, rows[:4]), (seen, rows[4:6])):
        for name in ("dice", "iou", "pixel_accuracy", "hd95_px", "assd_px"):
            assert line[name] == pytest.approx(np.mean([row[name] for row in part])), name
    assert found["counts"] == {"failed": 1, "ok": 7, "rejected": 1}
    assert sum(found["counts"].values()) == found["inputs"] == len(rows)
    reasons = {(row["status"], row["code"]): row["images"] for row in found["codes"]}
    assert reasons == {("ok", "mask_size"): 1, ("failed", "unreadable"): 1, ("rejected", "undecodable"): 1}
    assert numbers["notes"] == ["1 of 3 runs not finished: their figures are missing."]
    assert "9 inputs: 1 failed, 7 ok, 1 rejected" in " ".join(page.split())
    assert "secret-patient" not in page + json.dumps(numbers)


def test_overlays_prefer_unseen_images(study: Path, rows: list[Row], tmp_path: Path) -> None:
    _write_predictions(tmp_path / "predictions", rows)
    numbers, page = _run(study, predictions=str(tmp_path / "predictions"), overlays=3)
    shown = [(one["rank"], one["image_id"], one["training"]) for one in numbers["overlays"]]
    assert shown[0] == ("worst", "image_3", "unseen")
    assert shown[2] == ("best", "image_0", "unseen")
    assert page.count('<img src="data:image/png;base64,') == 3
    numbers, page = _run(study, predictions=str(tmp_path / "predictions"), overlays=12)
    assert [one["image_id"] for one in numbers["overlays"]].count("image_6") == 1
    assert page.count("<img ") == 7
    assert "no reference" in page
    assert "seen ones are among them" in page


def test_missing_source_image_is_a_note(study: Path, rows: list[Row], tmp_path: Path) -> None:
    _write_predictions(tmp_path / "predictions", rows)
    Path(rows[3]["source_uri"]).unlink()
    Path(rows[2]["mask_uris"][0]).unlink()
    assert cv2.imwrite(rows[1]["source_uri"], np.eye(40, dtype=np.uint8))
    numbers, page = _run(study, predictions=str(tmp_path / "predictions"), overlays=4)
    notes = {one["image_id"]: one["note"] for one in numbers["overlays"]}
    assert notes["image_3"] == f"{rows[3]['source_uri']} is missing"
    assert notes["image_2"].startswith("reference mask: ")
    assert "the image is 40x40 px, expected 96x84" in notes["image_1"]
    assert page.count("<img ") == 2
    assert page.count("not shown: ") == 2


def test_predictions_without_reference_masks(study: Path, rows: list[Row], tmp_path: Path) -> None:
    _write_predictions(tmp_path / "predictions", [_without_reference(row) for row in rows[:4]])
    numbers, page = _run(study, predictions=str(tmp_path / "predictions"))
    (line,) = numbers["predictions"]["rows"]
    assert (line["images"], line["without_reference"], line["dice"], line["hd95_px"]) == (4, 4, None, None)
    assert page.count("<img ") == 4
    assert 'class="reference" d=""' in page


def test_interrupted_infer_and_other_study_are_reported(study: Path, rows: list[Row], tmp_path: Path) -> None:
    _write_predictions(tmp_path / "predictions", rows[:4], planned=9)
    storage.write_json(str(study / "study.json"), {"study": "trial", "runs": ["pooled-fold1"], "settings": {}})
    numbers, _ = _run(study, predictions=str(tmp_path / "predictions"))
    assert numbers["predictions"]["complete"] is False
    said = " ".join(numbers["notes"])
    assert "infer was interrupted: 4 of 9 inputs are here" in said
    assert "made by run pooled-fold0, not of this study" in said


def test_predictions_folder_without_parts(study: Path, tmp_path: Path) -> None:
    _write_predictions(tmp_path / "predictions", [], planned=9)
    numbers, page = _run(study, predictions=str(tmp_path / "predictions"))
    assert numbers["predictions"]["inputs"] == 0
    assert "Not one image was predicted" in page


def test_page_is_self_contained_and_escapes_names(study: Path, rows: list[Row], tmp_path: Path) -> None:
    hostile = [{**row, "image_id": HOSTILE, "dataset": HOSTILE} for row in rows[:7]]
    hostile.append({**rows[7], "dataset": HOSTILE, "codes": [HOSTILE]})
    _write_predictions(tmp_path / "predictions", hostile)
    tested = [_tested("pooled-fold0", 0, 0.9, HOSTILE, role) for role in ("held-out", "cross")]
    _write_run(study / "pooled-fold0", "pooled-fold0", tested, [HOSTILE])
    _, page = _run(study, predictions=str(tmp_path / "predictions"))
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    sources = re.findall(r"""\b(?:src|href|srcset|poster|data)\s*=\s*["']?([^"'\s>]*)""", page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import|<link|<iframe", page)


def test_images_of_several_runs_count_once(study: Path) -> None:
    for name, dice in (("pooled-fold0", 0.9), ("pooled-fold1", 0.7)):
        cross = {**_tested(name, 0, dice, "south", "cross"), "image_id": "same"}
        _write_run(study / name, name, [_tested(name, 0, dice), cross], ["north"])
    numbers, page = _run(study)
    held_out, cross = numbers["study"]["tables"][0]["all_runs"]
    assert (held_out["role"], held_out["images"]) == ("held-out", 2)
    assert (cross["role"], cross["images"]) == ("cross", 1)
    assert cross["dice"] == pytest.approx(0.8)
    assert "0.8000 on 1 images of south (trained on north)" in page


def test_runs_of_other_settings_have_their_own_table(study: Path) -> None:
    _write_run(study / "pooled-fold1", "pooled-fold1", [_tested("pooled-fold1", 0, 0.9)], ["north"], epochs=9)
    numbers, _ = _run(study)
    assert [(one["epochs"], one["runs"]) for one in numbers["study"]["tables"]] == [(3, 1), (9, 1)]


@pytest.mark.parametrize(
    ("missing", "said"),
    [("trial", "no such folder"), ("trial/study.json", "no study.json"), ("trial/*/run.json", "none of 3 runs")],
)
def test_folder_without_a_study_is_refused(study: Path, missing: str, said: str) -> None:
    for path in study.parent.glob(missing):
        path.unlink() if path.is_file() else path.rename(study.parent / "away")
    with pytest.raises(InputError, match=said):
        _run(study)


def test_folder_without_predictions_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        _run(study, predictions=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"no plan\.json"):
        _run(study, predictions=str(study))
    with pytest.raises(SettingsError, match="--study"):
        report.run(ReportSettings())


def test_report_imports_neither_torch_nor_ray(study: Path, rows: list[Row], tmp_path: Path) -> None:
    _write_predictions(tmp_path / "predictions", rows)
    script = (
        "import sys\n"
        "from lungseg.config import ReportSettings\n"
        "from lungseg.pipelines import report\n"
        "report.run(ReportSettings(study=sys.argv[1], predictions=sys.argv[2]))\n"
        "assert not {'torch', 'ray', 'wandb'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script, str(study), str(tmp_path / "predictions")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 100
