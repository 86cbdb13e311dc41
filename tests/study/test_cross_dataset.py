"""Cross-dataset metrics of rows with known results."""

import io
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lungseg.metrics import bootstrap
from lungseg.metrics.paired_tests import holm
from lungseg.result_columns import STUDY_ROWS
from lungseg.schema import table
from lungseg.study import cross_dataset, result_text
from lungseg.study.tested_images import RunGroup, study_rows

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
            "class": "lung",
            "role": role,
            **dict.fromkeys(("tp", "fp", "fn", "tn"), 1),
            "dice": value,
            **dict.fromkeys(("iou", "pixel_accuracy", "sensitivity", "precision"), value),
            **dict.fromkeys(("hd95_px", "assd_px"), None if value == 0 else 2.0),
        }
        for image, value in dice.items()
    ]


def source(name: str, fold: int, rows: list[Row]) -> list[Row]:
    return study_rows([{**row, "run": f"from-{name}-{fold}"} for row in rows], "source-to-source", (name,), fold)


STUDY = [
    *source(A, 0, [*rows_of(A, "held-out", {"p1-1": 0.9, "p1-2": 0.8}), *rows_of(B, "cross", {"x": 0.5, "y": 0.6})]),
    *source(A, 1, [*rows_of(A, "held-out", {"p2-1": 1.0}), *rows_of(B, "cross", {"x": 0.7, "y": 0.8})]),
    *source(B, 0, [*rows_of(B, "held-out", {"x": 0.9}), *rows_of(A, "cross", {"p1-1": 0.7, "p1-2": 0.7, "p2-1": 0.0})]),
    *source(B, 1, [*rows_of(B, "held-out", {"y": 0.9}), *rows_of(A, "cross", {"p1-1": 0.5, "p1-2": 0.7, "p2-1": 0.0})]),
    *study_rows(rows_of(A, "held-out", {"p1-1": 1.0, "p1-2": 0.9}, "pooled"), "pooled", (A, B), 0),
]
FROM_A, FROM_B = RunGroup("source-to-source", A), RunGroup("source-to-source", B)
POOLED = RunGroup("pooled", "a+b")


def test_rows_match_the_schema() -> None:
    assert table(STUDY, STUDY_ROWS).num_rows == len(STUDY)
    assert STUDY[-1]["train_on"] == "a+b"


def test_images_of_one_audit_group_are_one_patient() -> None:
    separate = rows_of(A, "held-out", {"x": 0.9, "y": 0.8, "z": 0.7})
    linked = [{**row, "group": "a/x" if row["image_id"] in "xy" else None} for row in separate]
    results = [cross_dataset.summarise(source(A, 0, rows)) for rows in (separate, linked)]
    assert [result.cells[0].dice.patients for result in results] == [3, 2]  # type: ignore[union-attr]
    assert [result_text.dataset_table(result)[1] for result in results] == [
        [[A, "3", "3"]],
        [[A, "3", "2 (3 ids, 1 linked to another by duplicate images)"]],
    ]
    assert results[1].as_json()["datasets"] == [{"dataset": A, "images": 3, "patients": 2, "named_patients": 3}]


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
    assert result_text.format_gap(held_out_gap) == "gap 0.250 [0.150, 0.400] from a (source-to-source) to b"


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
    head, rows = result_text.dice_table(results)
    assert head == ["trained on", A, B]
    assert [row[0] for row in rows] == ["a + b (pooled)", "a (source-to-source)", "b (source-to-source)"]
    assert rows[0][1:] == ["0.950*", "-"]  # one patient has no interval
    assert rows[1][1] == "0.900 [0.850, 1.000]*"
    assert rows[1][2].startswith("0.650 [0.600, 0.700]")
    console = Console(width=100, record=True, file=io.StringIO())
    result_text.print_results(results, console)
    output = console.export_text()
    assert "0.900 [0.850, 1.000]*" in output
    assert re.search(r"tested on +images +patients *\na +3 +2 *\nb +2 +2 *\n", output)
    assert "gap 0.467 [0.250, 0.900] from b (source-to-source) to a" in output


def test_empty_results_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    results = cross_dataset.summarise([])
    result_text.print_results(results)
    assert capsys.readouterr().out == ""
    assert results.as_json() == {"cells": [], "gaps": [], "comparisons": [], "subgroups": [], "datasets": []}


def test_module_imports_neither_ray_nor_torch() -> None:
    script = "import sys, lungseg.study.cross_dataset; assert not {'ray', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def with_seeds(shifts: dict[int, float], name: str = A, folds: int = 2, patients: int = 12) -> list[Row]:
    """Rows of a study whose trainings move the Dice by their seed's shift, with some noise of single images."""
    random = np.random.default_rng(len(shifts))
    rows = []
    for fold in range(folds):
        for seed, shift in shifts.items():
            own = {f"p{i}-1": 0.8 + 0.01 * i + shift + random.normal(0, 0.002) for i in range(fold, patients, folds)}
            cross = {f"x{i}-1": 0.7 + 0.01 * i + 2 * shift + random.normal(0, 0.002) for i in range(patients)}
            tested = [*rows_of(name, "held-out", own), *rows_of(C, "cross", cross)]
            run = [{**row, "run": f"{name}-{fold}-{seed}"} for row in tested]
            rows += study_rows(run, "source-to-source", (name,), fold, seed)
    return rows


def test_spread_over_seeds_is_of_their_means() -> None:
    results = cross_dataset.summarise(with_seeds({0: -0.01, 1: 0.0, 2: 0.02}))
    own, cross = results.cells
    assert own.dice is not None
    assert (own.dice.basis, own.runs, own.images) == ("patients and trainings", 6, 12)
    spread = own.spread["dice"]
    assert spread is not None
    assert (spread.seeds, spread.max - spread.min) == (3, pytest.approx(0.03, abs=0.004))
    assert cross.as_json()["dice_seed_sd"] == pytest.approx(2 * own.as_json()["dice_seed_sd"], rel=0.2)
    (gap,) = results.gaps
    assert gap.gap.basis == "patients and trainings"
    assert gap.as_json()["gap_seeds"] == 3
    # A seed that is better on both sides changes the gap by its difference only.
    assert gap.as_json()["gap_seed_max"] - gap.as_json()["gap_seed_min"] == pytest.approx(0.03, abs=0.006)


def test_seeds_widen_the_interval() -> None:
    rows = with_seeds({0: -0.03, 1: 0.0, 2: 0.03}, patients=40)
    own = cross_dataset.summarise(rows).cells[0].dice
    as_one = cross_dataset.summarise([{**row, "seed": 0} for row in rows]).cells[0].dice
    assert own is not None
    assert as_one is not None
    assert own.mean == as_one.mean
    assert own.low is not None
    assert as_one.low is not None
    assert own.mean - own.low > 1.2 * (as_one.mean - as_one.low)
    assert as_one.basis == "patients"


def test_seed_missing_in_a_fold_is_not_in_the_spread() -> None:
    rows = [row for row in with_seeds({0: 0.0, 1: 0.01, 2: 0.02}) if (row["fold"], row["seed"]) != (1, 2)]
    own = cross_dataset.summarise(rows).cells[0]
    assert own.spread["dice"] is not None
    assert own.spread["dice"].seeds == 2
    assert own.dice is not None
    assert own.dice.basis == "patients and trainings"
    alone = [row for row in rows if row["fold"] == 0 or row["seed"] == 0]
    single = cross_dataset.summarise(alone).cells[0]
    assert single.dice is not None
    assert (single.dice.basis, single.spread["dice"]) == ("patients", None)


def test_groups_with_equal_trainings_differ_by_chance_only() -> None:
    shifts = {0: -0.02, 1: 0.0, 2: 0.02}
    rows = [*with_seeds(shifts), *with_seeds({seed: -shift + 0.005 for seed, shift in shifts.items()}, B)]
    (comparison,) = cross_dataset.summarise(rows).comparisons
    assert (comparison.dataset, comparison.paired.basis) == (C, "patients and trainings")
    assert comparison.paired.p is not None
    assert comparison.paired.p > 0.2
    one_seed = cross_dataset.summarise([{**row, "seed": 0} for row in rows]).comparisons[0].paired
    assert one_seed.p is not None
    assert one_seed.p < 0.05
    assert (comparison.metrics["iou"].difference, "hd95_px" in comparison.metrics) == (
        comparison.paired.difference,
        True,
    )
    assert comparison.as_json()["first"]["dice_seeds"] == 3


def test_p_is_corrected_over_the_rows_of_a_table() -> None:
    rows = [row for name, shift in ((A, 0.0), (B, 0.002), ("d", 0.1)) for row in with_seeds({0: shift}, name)]
    comparisons = cross_dataset.summarise(rows).comparisons
    assert len(comparisons) == 3
    assert [item.paired.p_holm for item in comparisons] == holm([item.paired.p for item in comparisons])
    assert all(item.paired.p_holm > item.paired.p or item.paired.p_holm == 1 for item in comparisons[:1])  # type: ignore[operator]


def test_printed_results_say_what_intervals_account_for() -> None:
    texts = []
    for rows in (STUDY, with_seeds({0: 0.0, 1: 0.01, 2: 0.02})):
        console = Console(width=100, record=True, file=io.StringIO())
        result_text.print_results(cross_dataset.summarise(rows), console)
        texts.append(console.export_text())
    assert "95 % intervals over patients, not over trainings" in texts[0]
    assert "single seeds" not in texts[0]
    assert "95 % intervals over patients and trainings" in texts[1]
    assert re.search(r"a \(source-to-source\) +c +3 +0\.\d{4} +0\.\d{4} +0\.\d{4}", texts[1])
    assert re.search(r"gap .* to c; 3 seeds: 0\.\d{3} to 0\.\d{3}, sd 0\.\d{3}", texts[1])


def of_class(name: str, rows: list[Row]) -> list[Row]:
    return [{**row, "class": name} for row in rows]


def test_each_class_is_summarised_as_if_it_were_alone() -> None:
    hearts = [{**row, "dice": row["dice"] / 2} for row in STUDY if row["dice"] is not None]
    both = cross_dataset.summarise([*of_class("lung", STUDY), *of_class("heart", hearts)])
    for name, rows in (("lung", STUDY), ("heart", hearts)):
        alone = cross_dataset.summarise(rows)
        assert [replace(cell, class_name="") for cell in both.cells if cell.class_name == name] == [*alone.cells]
        assert [replace(gap, class_name="") for gap in both.gaps if gap.class_name == name] == [*alone.gaps]
    assert both.datasets == cross_dataset.summarise(STUDY).datasets  # each image counts once
    assert {item["class"] for item in both.as_json()["comparisons"]} == {"lung", "heart"}


def test_p_is_corrected_over_the_comparisons_of_all_classes() -> None:
    alone = cross_dataset.summarise(STUDY).comparisons
    both = cross_dataset.summarise([*of_class("lung", STUDY), *of_class("heart", STUDY)]).comparisons
    assert len(both) == 2 * len(alone)
    raw = [item.metrics["dice"].p for item in both]
    assert [item.metrics["dice"].p_holm for item in both] == holm(raw)


def test_table_names_the_class_only_where_there_are_several() -> None:
    assert result_text.dice_table(cross_dataset.summarise(STUDY))[0] == ["trained on", A, B]
    several = cross_dataset.summarise([*of_class("lung", STUDY), *of_class("heart", STUDY)])
    header, rows = result_text.dice_table(several)
    assert header == ["trained on", "class", A, B]
    assert [row[1] for row in rows] == ["lung"] * 3 + ["heart"] * 3
    assert ", heart" in result_text.format_gap(several.gaps[-1])
    assert "class" not in str(cross_dataset.summarise(STUDY).as_json())
