import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from lungseg import provenance
from lungseg.arrays import Row
from lungseg.metrics import bootstrap
from lungseg.predictions.overlays import draw_case, select_cases, select_doubtful
from lungseg.report.page import Page, headline, to_html, to_json
from lungseg.report.prediction_results import read_predictions
from lungseg.report.result_table import TRAINING_LABELS
from lungseg.report.study_results import read_study
from lungseg.study.result_text import SUBGROUPS
from lungseg.study.study_comparison import StudyComparisons
from lungseg.study.subgroups import Subgroup
from lungseg.study.tested_images import RunGroup
from tests.report.result_files import dice_row, without_reference, write_predictions, write_run

HOSTILE = "<script>alert(1)</script>"


def _page(study: Path, rows: list[Row], overlays: int = 12) -> Page:
    folder = study.parent / "predictions"
    write_predictions(folder, rows, planned=None if rows else 9)
    predictions = read_predictions(str(folder))
    cases = select_cases(predictions.rows, overlays)
    drawn = [draw_case(row, rank, TRAINING_LABELS[row["seen_in_training"]]) for rank, row in cases]
    has_reference = any(line.dice for line in predictions.lines)
    return Page(read_study(str(study)), StudyComparisons(), predictions, drawn, not has_reference, ["a note"])


def _page_without_study(folder: Path, rows: list[Row], overlays: int = 2) -> Page:
    write_predictions(folder, rows)
    predictions = read_predictions(str(folder))
    drawn = [draw_case(row, rank, "unseen") for rank, row in select_doubtful(predictions.rows, overlays)]
    return Page(None, StudyComparisons(), predictions, drawn, True, [])


def test_page_of_predictions_alone_shows_the_most_doubtful(tmp_path: Path, rows: list[Row]) -> None:
    doubts = [0.02, 0.05, 0.031, 0.04]
    alone = [
        {**without_reference(row), "doubt": doubt, "doubt_reason": f"reason {number}"}
        for number, (row, doubt) in enumerate(zip(rows, doubts, strict=False))
    ]
    alone[0]["flags"] = ["lungs_joined"]
    page = _page_without_study(tmp_path / "predictions", [*alone, *rows[7:]])
    overlays = to_json(page)["overlays"]
    assert [(overlay["rank"], overlay["image_id"]) for overlay in overlays] == [("1", "image_0"), ("2", "image_1")]
    text = " ".join(to_html(page).split())
    assert "2 of 4 images with a mask are shown" in text
    assert "4 of 6 inputs have a mask. 1 of them has a flag" in text
    assert "<b>doubt 0.050</b><br> 1.png<br>reason 1<br>" in text
    for word in ("tudy", "Dice per image", "lowest, median", "Learning curves"):
        assert word not in text.split("</style>")[1]
    assert to_json(page)["study"] is None


def test_footer_tells_the_versions_of_both_processes(tmp_path: Path, rows: list[Row]) -> None:
    page = _page_without_study(tmp_path / "predictions", rows)
    assert page.predictions is not None
    page.predictions.about["versions"] = {"lungseg": "9.8.7", "torch": "6.5"}
    text = " ".join(to_html(page).split())
    assert "made with lungseg 9.8.7, torch 6.5." in text
    assert "This page was written with lungseg " in text


def test_headline_names_cross_dataset_results(study: Path) -> None:
    for name, dice in (("pooled-fold0", 0.9), ("pooled-fold1", 0.7)):
        cross = {**dice_row(name, 0, dice, "south", "cross"), "image_id": "same"}
        write_run(study / name, name, [dice_row(name, 0, dice), cross], ["north"])
    own, other = headline(read_study(str(study)))
    assert "mean Dice 0.8000 on 2 held-out images of the same data (2 of 2 folds; mean over images, at 64 px" in own
    assert "0.8000 on 1 image of south (trained on north)" in other


def test_page_and_json_say_how_the_models_were_trained(study: Path, rows: list[Row]) -> None:
    for name in ("pooled-fold0", "pooled-fold1"):
        provenance.record_start(str(study / name), {"code": "aaa", "versions": {"torch": "2.14"}, "git": {}})
    page = _page(study, rows)
    content = to_json(page)["study"]
    recorded = {row["name"]: row["value"] for row in content["training"]}
    expected = {
        "held-out folds": "0, 1",
        "seeds of the trainings": "0",
        "training images of a run": "6",
        "images per step": "8",
        "trained on": "north",
        "--model.encoder": "tiny",
        "code digest": "aaa",
        "torch": "2.14",
    }
    assert {name: recorded[name] for name in expected} == expected
    text = " ".join(to_html(page).split())
    assert all(f"<td>{name}</td><td>{value}</td>" in text for name, value in expected.items())


def test_page_shows_the_dice_by_finding(study: Path) -> None:
    results = read_study(str(study))
    group = RunGroup("pooled", "north")
    dice = bootstrap.summarise([0.8, 0.9], ["a", "b"])
    found = [Subgroup(group, "north", "held-out", "finding", text, dice) for text in ("normal", HOSTILE)]
    results = replace(results, matrix=replace(results.matrix, subgroups=tuple(found)))
    html = to_html(Page(results, StudyComparisons(), None, [], False, []))
    assert f"<h3>{SUBGROUPS}</h3>" in html
    assert "finding: normal" in html
    assert HOSTILE not in html
    assert SUBGROUPS not in to_html(Page(read_study(str(study)), StudyComparisons(), None, [], False, []))


def test_page_shows_counts_notes_and_curves(study: Path, rows: list[Row]) -> None:
    page = _page(study, rows)
    text = to_html(page)
    assert "9 inputs: 1 failed, 7 ok, 1 rejected" in " ".join(text.split())
    assert "The file is empty, truncated, damaged, or not an image." in text
    assert "<li>a note</li>" in text
    assert text.count("<polyline") == 6
    assert "secret-patient" not in text + json.dumps(to_json(page))


def test_overlays_prefer_unseen_images(study: Path, rows: list[Row]) -> None:
    page = _page(study, rows, overlays=3)
    assert [(case.rank, case.image_id) for case in page.overlays][::2] == [("worst", "image_3"), ("best", "image_0")]
    assert {case.training for case in page.overlays} == {"unseen"}
    assert to_html(page).count('<img src="data:image/png;base64,') == 3
    text = to_html(_page(study, rows))
    assert text.count("<img ") == 7
    assert "images seen in training are included" in text


def test_missing_source_image_is_a_note(study: Path, rows: list[Row]) -> None:
    Path(rows[3]["source_uri"]).unlink()
    Path(rows[2]["mask_uris"][0]).unlink()
    assert cv2.imwrite(rows[1]["source_uri"], np.eye(40, dtype=np.uint8))
    page = _page(study, rows, overlays=4)
    notes = {overlay["image_id"]: overlay["note"] for overlay in to_json(page)["overlays"]}
    assert notes["image_3"] == f"{rows[3]['source_uri']} is missing"
    assert notes["image_2"].startswith("reference mask: ")
    assert "the image is 40x40 px, expected 96x84" in notes["image_1"]
    text = to_html(page)
    assert text.count("<img ") == 2
    assert text.count("not shown: ") == 2


def test_predictions_without_reference_masks(study: Path, rows: list[Row]) -> None:
    page = _page(study, [without_reference(row) for row in rows[:4]])
    (line,) = to_json(page)["predictions"]["rows"]
    assert (line["images"], line["without_reference"], line["dice"], line["hd95_px"]) == (4, 4, None, None)
    text = to_html(page)
    assert text.count("<img ") == 4
    assert 'class="reference"' not in text
    predictions = text.split("<h2>Predictions</h2>")[1].split("<h2>Dice per image</h2>")[0]
    assert predictions.replace("overlaps the truth by 0.97 (Dice)", "").count("Dice") == 0
    assert "HD95" not in predictions
    assert "reference (wide, blue)" not in predictions
    assert predictions.count("No image has a reference mask") == 1


def test_predictions_without_any_image(study: Path) -> None:
    page = _page(study, [])
    assert to_json(page)["predictions"]["inputs"] == 0
    assert "No image was predicted" in to_html(page)


def test_page_is_self_contained_and_escapes_names(study: Path, rows: list[Row]) -> None:
    hostile = [{**row, "image_id": HOSTILE, "dataset": HOSTILE} for row in rows[:7]]
    hostile.append({**rows[7], "dataset": HOSTILE, "codes": [HOSTILE]})
    tested = [dice_row("pooled-fold0", 0, 0.9, HOSTILE, role) for role in ("held-out", "cross")]
    write_run(study / "pooled-fold0", "pooled-fold0", tested, [HOSTILE])
    text = to_html(_page(study, hostile))
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    sources = re.findall(r"""\b(?:src|href|srcset|poster|data)\s*=\s*["']?([^"'\s>]*)""", text)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import|<link|<iframe", text)
