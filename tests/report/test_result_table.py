from typing import Any

import numpy as np
import pytest

from lungseg.report.result_table import METRICS, compute_metrics


def _row(image: int, dice: float | None, patient: str = "") -> dict[str, Any]:
    ids = {"image_id": str(image), "dataset": "north", "patient_id": patient}
    return {**ids, **dict.fromkeys(METRICS, dice)}


def test_metrics_leave_out_images_without_reference() -> None:
    rows = [_row(image, dice) for image, dice in enumerate((0.5, 1.0, None))]
    metrics = compute_metrics(rows)
    assert (metrics["images"], metrics["dice"], metrics["dice_min"], metrics["dice_median"]) == (3, 0.75, 0.5, 0.75)
    assert metrics["dice_sd"] == pytest.approx(0.125**0.5)
    assert metrics["dice_p5"] == pytest.approx(0.525)
    undefined = compute_metrics(rows[2:])
    assert undefined.keys() == metrics.keys()
    assert undefined.pop("images") == 1
    assert set(undefined.values()) == {None}


def test_interval_is_over_patients() -> None:
    dice = np.random.default_rng(0).normal(0.9, 0.02, 400).tolist()
    separate = compute_metrics([_row(image, value) for image, value in enumerate(dice)])
    assert separate["dice_high"] - separate["dice_low"] == pytest.approx(2 * 1.96 * 0.02 / 20, rel=0.15)
    fourfold = compute_metrics([_row(image, value, f"p{image % 100}") for image, value in enumerate(4 * dice[:100])])
    assert fourfold["dice_high"] - fourfold["dice_low"] == pytest.approx(2 * 1.96 * 0.02 / 10, rel=0.2)
    one_patient = compute_metrics([_row(image, value, "p") for image, value in enumerate(dice)])
    assert (one_patient["dice_low"], one_patient["dice_high"]) == (None, None)


def test_patient_ids_are_per_dataset() -> None:
    metrics = compute_metrics([_row(0, 0.8, "p"), {**_row(1, 0.9, "p"), "dataset": "south"}])
    assert (metrics["dice_low"], metrics["dice_high"]) == (0.8, 0.9)
