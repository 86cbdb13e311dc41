"""Speed of the stages, predictions.json, and the two lines about a single image."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lungseg import storage
from lungseg.config import InferSettings, PreprocessSettings
from lungseg.inference.class_summary import ClassTotals
from lungseg.inference.cpu_tasks import InferenceJob
from lungseg.inference.items import PredictOptions
from lungseg.inference.part_plan import write_part
from lungseg.inference.summary import StageTimes, log_counts, print_image_summary, write_summary
from lungseg.predictions.parts import StatusCounts, part_path
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import table

LUNG_COLUMNS = ("area_px", "right_lung_px", "left_lung_px")


def row(name: str, **changes: object) -> dict[str, Any]:
    values = {"image_id": name, "source_uri": f"/films/{name}.png", "status": "ok", "codes": [], "message": ""}
    figures = {"height": 100, "width": 200, "area_px": 5000, "right_lung_px": 3000, "left_lung_px": 2000}
    return {**dict.fromkeys(PREDICTIONS.names), **values, **figures, **changes}


def times_json(open_: float, predict: float, finish: float, busy: tuple[float, float]) -> str:
    return json.dumps({"open": open_, "predict": predict, "finish": finish, "busy": busy})


def test_speed_is_that_of_one_worker_in_a_stage() -> None:
    times = StageTimes("cuda", actors=2)
    times.add(30, times_json(3.0, 1.0, 2.0, (100.0, 101.0)))
    times.add(10, times_json(1.0, 1.0, 6.0, (103.0, 104.0)))
    summary = times.as_json()
    assert summary["images"] == 40
    assert summary["images_per_second"] == {"open": 10.0, "predict": 20.0, "finish": 5.0}
    assert summary["worker_seconds"] == {"open": 4.0, "predict": 2.0, "finish": 8.0}
    # Two actors for four seconds; together they were busy for two of these eight.
    assert summary["device_wait_share"] == 0.75
    assert summary["hours_per_million"] == {"cpu_tasks": round(12 / 40 * 1e6 / 3600, 1), "devices": 13.9}


def test_order_of_parts_does_not_matter() -> None:
    parts = [
        times_json(1.0, 1.0, 1.0, (5.0, 6.0)),
        times_json(2.0, 1.0, 1.0, (1.0, 3.0)),
        times_json(1.0, 1.0, 3.0, (2.0, 9.0)),
    ]
    summary = []
    for order in (parts, parts[::-1]):
        times = StageTimes(actors=2, began=0.0)
        for one in order:
            times.add(1, one)
        summary.append(times.as_json())
    assert summary[0] == summary[1]
    assert summary[0]["device_wait_share"] == round(1 - 10 / 16, 3)


def test_run_without_predictions_has_no_speed() -> None:
    assert StageTimes("cpu", 3).as_json() == {"device": "cpu", "actors": 3, "images": 0}


def test_zero_seconds_do_not_divide_by_zero() -> None:
    times = StageTimes()
    times.add(1, times_json(0.0, 0.0, 0.0, (5.0, 5.0)))
    assert times.as_json()["device_wait_share"] is None


@pytest.fixture
def job(tmp_path: Path) -> InferenceJob:
    settings = InferSettings(archive="/films", out=str(tmp_path), part_size=2)
    return InferenceJob(
        settings, str(tmp_path), (), "tiny", "0123456789abcdef", PreprocessSettings(), {"lung": 0.5}, PredictOptions()
    )


def write_parts(job: InferenceJob) -> StatusCounts:
    first = [row("a"), row("b", status="rejected", codes=["blank"])]
    second = [row("c", status="failed", codes=["unreadable"])]
    written = [write_part(part_path(job.out, number), rows, "x") for number, rows in enumerate((first, second))]
    return written[0].add(written[1])


def test_predictions_json_has_counts_and_every_part(job: InferenceJob) -> None:
    total = write_parts(job)
    times = StageTimes()
    times.add(3, times_json(1.0, 2.0, 3.0, (0.0, 2.0)))
    write_summary(job, total, StatusCounts.empty(), times, 2.0)
    summary = storage.read_json(f"{job.out}/predictions.json")
    assert summary["images"] == 3 == sum(summary["counts"].values())
    assert summary["counts"] == {"ok": 1, "rejected": 1, "failed": 1}
    assert summary["codes"] == [
        {"status": "failed", "code": "unreadable", "images": 1},
        {"status": "rejected", "code": "blank", "images": 1},
    ]
    for part, rows in zip(summary["parts"], (2, 1), strict=True):
        content = (Path(job.out) / "rows" / part["name"]).read_bytes()
        assert (part["rows"], part["bytes"]) == (rows, len(content))
        assert part["sha256"] == hashlib.sha256(content).hexdigest()
    assert (summary["model"], summary["images_per_second"]) == (job.model_digest, 1.5)
    assert (summary["processed_now"], summary["predicted_now"]) == (3, 1)
    assert summary["settings"] == job.settings.model_dump(mode="json")
    assert {"lungseg", "python", "torch", "ray"} <= summary["versions"].keys()
    assert summary["stages"] == times.as_json()


def test_run_that_predicted_nothing_has_no_speed(job: InferenceJob) -> None:
    counts = write_parts(job)
    write_summary(job, counts, counts, StageTimes(), 0.01)
    summary = storage.read_json(f"{job.out}/predictions.json")
    assert (summary["predicted_now"], summary["images_per_second"], summary["stages"]["images"]) == (0, None, 0)


def test_a_run_that_finds_everything_finished_keeps_the_speed(job: InferenceJob) -> None:
    counts, times = write_parts(job), StageTimes()
    times.add(3, times_json(1.0, 2.0, 3.0, (0.0, 2.0)))
    write_summary(job, counts, StatusCounts.empty(), times, 2.0)
    first = storage.read_json(f"{job.out}/predictions.json")
    write_summary(job, counts, counts, StageTimes(), 0.01)
    again = storage.read_json(f"{job.out}/predictions.json")
    assert (again["processed_now"], again["predicted_now"]) == (0, 0)
    assert again == first | {"processed_now": 0, "predicted_now": 0}


def test_key_is_not_in_predictions_json(job: InferenceJob) -> None:
    job = replace(job, key=b"a secret that is long enough")
    write_summary(job, write_parts(job), StatusCounts.empty(), StageTimes(), 0.01)
    assert b"a secret" not in (Path(job.out) / "predictions.json").read_bytes()


@pytest.mark.parametrize(("flagged", "is_advised"), [(4, False), (5, True)])
def test_over_a_third_of_flagged_images_give_advice(
    flagged: int, is_advised: bool, caplog: pytest.LogCaptureFixture
) -> None:
    flags = Counter({"lungs_uncertain": flagged, "spacing_unusable": 12})
    counts = StatusCounts(Counter({"ok": 12, "rejected": 4}), Counter(), flags=flags, flagged=12)
    log_counts("out", counts, StatusCounts.empty(), 1.0)
    assert ("over a third of the images are flagged" in caplog.text) == is_advised


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        ({"heart_on_right": 10, "lungs_joined": 1}, "flagged, heart_on_right: The predicted heart lies on"),
        ({"heart_on_right": 10, "lungs_joined": 9}, "flagged: the model may be trained too little"),
        ({"heart_on_right": 4, "rotated": 4}, "flagged: the model may be trained too little"),
    ],
)
def test_advice_names_the_flag_of_a_third(flags: dict[str, int], cause: str, caplog: pytest.LogCaptureFixture) -> None:
    counts = StatusCounts(Counter({"ok": 12}), Counter(), flags=Counter(flags), flagged=12)
    log_counts("out", counts, StatusCounts.empty(), 1.0)
    assert f"over a third of the images are {cause}" in caplog.text


def test_mean_dice_states_the_images_trained_on(caplog: pytest.LogCaptureFixture) -> None:
    totals = ClassTotals(["heart"])
    values = [(0.9, True), (0.7, False), (None, True), (0.8, None)]
    totals.add(
        {"status": "ok", "classes": [{"class": "heart", "area_px": 5, "dice": dice}], "seen_in_training": is_seen}
        for dice, is_seen in values
    )
    with caplog.at_level("INFO"):
        totals.log()
    assert "0.800 of 3 (1 trained on)" in caplog.text
    assert "the model was trained on 2 of 4 images: new images may get worse masks" in caplog.text
    assert (totals.as_json()[0]["compared"], totals.as_json()[0]["trained_on"]) == (3, 1)


@pytest.mark.parametrize(("dice", "line"), [(0.9123, "mean Dice 0.912 of 1 with a reference mask"), (None, "")])
def test_a_single_class_has_one_line_where_there_are_references(
    dice: float | None, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    totals = ClassTotals(["lung"])
    totals.add([row("a", dice=dice), row("b", status="rejected")])
    with caplog.at_level("INFO"):
        totals.log()
    assert caplog.messages == ([line] if line else [])
    assert totals.as_json()[0]["mean_dice"] == dice


def test_flags_of_images_without_a_mask_do_not_count() -> None:
    rows = table([row("a", flags=["no_mask"]), row("b", status="rejected", flags=["no_mask"])], PREDICTIONS)
    counts = StatusCounts.from_rows(rows)
    assert (counts.flags, counts.flagged) == ({"no_mask": 1}, 1)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"doubt": 0.0346, "dice": 0.95678},
            "a.png: lungs 25.0% of 200 x 100 px (right 15.0% and left 10.0%), doubt 0.035, Dice 0.9568",
        ),
        (
            {"right_lung_cm2": 151.6, "left_lung_cm2": 99.2},
            "a.png: lungs 25.0% of 200 x 100 px (right 15.0%, 152 cm2 and left 10.0%, 99 cm2)",
        ),
        ({}, "a.png: lungs 25.0% of 200 x 100 px (right 15.0% and left 10.0%)"),
        (
            {"area_px": 0, "right_lung_px": 0, "left_lung_px": 0},
            "a.png: lungs 0.0% of 200 x 100 px (right 0.0% and left 0.0%)",
        ),
        (
            {"flags": ["not_chest_like"]},
            "a.png: lungs 25.0% of 200 x 100 px (right 15.0% and left 10.0%)\nflags: not_chest_like: look at the image",
        ),
        (
            {"classes": [{"class": "right_lung", "area_px": 4000, "dice": 0.5}], **dict.fromkeys(LUNG_COLUMNS)},
            "a.png: right_lung 20.0%, Dice 0.5000",
        ),
        (
            {"status": "rejected", "codes": ["blank"], "message": "a.png is black", "area_px": None, "height": None},
            "a.png: rejected (blank): a.png is black",
        ),
    ],
)
def test_single_image_is_summarized_with_the_path_of_its_part(
    changes: dict[str, object], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = part_path(str(tmp_path), 0)
    write_part(path, [row("a", **changes)], "x")
    print_image_summary(str(tmp_path))
    assert capsys.readouterr().out.splitlines() == [*line.splitlines(), path]
