"""Cross-dataset metrics of rows with known results."""

import io
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from lungseg.metrics import bootstrap
from lungseg.schema import STUDY_ROWS, table
from lungseg.study import cross_dataset

Row = dict[str, Any]
A, B, C = "a", "b", "c"


def rows_of(dataset: str, role: str, dice: dict[str, float | None], run: str = "run") -> list[Row]:
    """Rows of tested.parquet, by image; the patient of image p1-x is p1."""
    return [
        {
            "run": run,
            "image_id": image,
            "dataset": dataset,
            "patient_id": image.split("-")[0] if "-" in image else "",
            "group": None,
            "role": role,
            **dict.fromkeys(("tp", "fp", "fn", "tn"), 1),
            "dice": value,
            **dict.fromkeys(("iou", "pixel_accuracy", "sensitivity", "precision"), value),
            **dict.fromkeys(("hd95_px", "assd_px"), None if value == 0 else 2.0),
        }
        for image, value in dice.items()
    ]


def source(name: str, fold: int, rows: list[Row]) -> list[Row]:
    return cross_dataset.study_rows(
        [{**row, "run": f"from-{name}-{fold}"} for row in rows], "source-to-source", (name,), fold
    )


STUDY = [
    *source(A, 0, [*rows_of(A, "held-out", {"p1-1": 0.9, "p1-2": 0.8}), *rows_of(B, "cross", {"x": 0.5, "y": 0.6})]),
    *source(A, 1, [*rows_of(A, "held-out", {"p2-1": 1.0}), *rows_of(B, "cross", {"x": 0.7, "y": 0.8})]),
    *source(B, 0, [*rows_of(B, "held-out", {"x": 0.9}), *rows_of(A, "cross", {"p1-1": 0.7, "p1-2": 0.7, "p2-1": 0.0})]),
    *source(B, 1, [*rows_of(B, "held-out", {"y": 0.9}), *rows_of(A, "cross", {"p1-1": 0.5, "p1-2": 0.7, "p2-1": 0.0})]),
    *cross_dataset.study_rows(rows_of(A, "held-out", {"p1-1": 1.0, "p1-2": 0.9}, "pooled"), "pooled", (A, B), 0),
]
FROM_A, FROM_B = cross_dataset.RunGroup("source-to-source", A), cross_dataset.RunGroup("source-to-source", B)
POOLED = cross_dataset.RunGroup("pooled", "a+b")


def test_rows_match_the_schema() -> None:
    assert table(STUDY, STUDY_ROWS).num_rows == len(STUDY)
    assert STUDY[-1]["train_on"] == "a+b"


def test_images_of_one_audit_group_are_one_patient() -> None:
    separate = rows_of(A, "held-out", {"x": 0.9, "y": 0.8, "z": 0.7})
    linked = [{**row, "group": "a/x" if row["image_id"] in "xy" else None} for row in separate]
    patients = [cross_dataset.summarise(source(A, 0, rows)).cells[0].dice.patients for rows in (separate, linked)]  # type: ignore[union-attr]
    assert patients == [3, 2]


def test_each_image_counts_once_with_its_mean_over_runs() -> None:
    cells = {(cell.run_group, cell.dataset): cell for cell in cross_dataset.summarise(STUDY).cells}
    cross = cells[FROM_A, B]
    assert cross.role == "cross"
    assert (cross.images, cross.runs) == (2, 2)
    assert cross.dice.mean == pytest.approx((0.6 + 0.7) / 2)
    assert cross.dice == bootstrap.summarise([0.6, 0.7], ["b/x", "b/y"])
    own = cells[FROM_A, A]
    assert own.role == "held-out"
    assert own.as_json()["patients"] == 2  # p1 and p2, of three images
    assert own.dice.mean == pytest.approx(0.9)


def test_undefined_values_are_excluded_and_counted() -> None:
    cells = {(cell.run_group, cell.dataset): cell.as_json() for cell in cross_dataset.summarise(STUDY).cells}
    assert cells[FROM_B, A]["hd95_px"] == 2.0
    assert cells[FROM_B, A]["undefined"] == {"hd95_px": 1, "assd_px": 1}
    assert cells[FROM_A, A]["undefined"] == {}
    none = cross_dataset.summarise(source(A, 0, rows_of(A, "held-out", {"x": None}))).cells[0].as_json()
    assert none["dice"] is None
    assert none["dice_low"] is None
    assert none["images"] == 1


def test_pooled_comes_first_and_held_out_before_cross() -> None:
    order = [(cell.run_group, cell.role) for cell in cross_dataset.summarise(reversed(STUDY)).cells]
    assert order == [
        (POOLED, "held-out"),
        (FROM_A, "held-out"),
        (FROM_A, "cross"),
        (FROM_B, "held-out"),
        (FROM_B, "cross"),
    ]


def test_gaps_are_held_out_minus_cross() -> None:
    gaps = {(gap.run_group, gap.dataset): gap for gap in cross_dataset.summarise(STUDY).gaps}
    assert set(gaps) == {(FROM_A, B), (FROM_B, A)}  # pooled was not tested on another dataset
    held_out_gap = gaps[FROM_A, B]
    assert held_out_gap.gap == bootstrap.gap([0.9, 0.8, 1.0], ["a/p1", "a/p1", "a/p2"], [0.6, 0.7], ["b/x", "b/y"])
    assert held_out_gap.as_json()["gap"] == pytest.approx(0.9 - 0.65)
    assert str(held_out_gap) == "gap 0.250 [0.150, 0.400] from a (source-to-source) to b"


def test_comparisons_use_the_shared_images() -> None:
    summary = cross_dataset.summarise(STUDY)
    comparisons = {(item.dataset, item.first, item.second): item for item in summary.comparisons}
    assert set(comparisons) == {(A, POOLED, FROM_A), (A, POOLED, FROM_B), (A, FROM_A, FROM_B), (B, FROM_A, FROM_B)}
    pooled = comparisons[A, POOLED, FROM_A]
    assert pooled.paired == bootstrap.compare(
        [1.0, 0.9], [0.9, 0.8], ["a/p1", "a/p1"]
    )  # p2-1 is in no fold of the pooled runs
    both = comparisons[B, FROM_A, FROM_B].as_json()
    assert both["first"] == {"protocol": "source-to-source", "train_on": A, "role": "cross"}
    assert both["second"]["role"] == "held-out"
    assert both["difference"] == pytest.approx(0.65 - 0.9)


def test_table_and_printed_results() -> None:
    results = cross_dataset.summarise(STUDY)
    head, rows = cross_dataset.dice_table(results)
    assert head == ["trained on", A, B]
    assert [row[0] for row in rows] == ["a + b (pooled)", "a (source-to-source)", "b (source-to-source)"]
    assert rows[0][1:] == ["0.950*", "-"]  # one patient has no interval
    assert rows[1][1] == "0.900 [0.850, 1.000]*"
    assert rows[1][2].startswith("0.650 [0.600, 0.700]")
    console = Console(width=100, record=True, file=io.StringIO())
    cross_dataset.print_results(results, console)
    output = console.export_text()
    assert "0.900 [0.850, 1.000]*" in output
    assert "gap 0.467 [0.250, 0.900] from b (source-to-source) to a" in output


def test_empty_results_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    results = cross_dataset.summarise([])
    cross_dataset.print_results(results)
    assert capsys.readouterr().out == ""
    assert results.as_json() == {"cells": [], "gaps": [], "comparisons": []}


def test_module_imports_neither_ray_nor_torch() -> None:
    script = "import sys, lungseg.study.cross_dataset; assert not {'ray', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
