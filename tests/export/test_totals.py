"""Counts of an export and their lines."""

import json
from collections import Counter
from pathlib import Path

from lungseg import storage
from lungseg.export.totals import ExportTotals

PART = {
    "counts": {"rows": 4, "selected": 3, "masks": 3, "dicom-seg": 1, "refused": 2},
    "refused": {"dicom-seg": {"not_dicom": 1, "mask_empty": 1}},
    "emptied": {"StudyDate": 1},
    "notes": ["one", "two"],
}


def test_parts_add_up_and_are_described() -> None:
    totals = ExportTotals()
    totals.add(PART)
    totals.add({**PART, "refused": {"dicom-seg": {"not_dicom": 2}}})
    assert totals.counts["refused"] == 4
    assert totals.notes == ["one", "two", "one", "two"]
    not_exported, emptied = totals.lines()
    assert not_exported == "not exported as dicom-seg: 4 of 6 rows (3 not_dicom, 1 mask_empty)"
    assert emptied.endswith("invalid: 2 StudyDate")
    assert ExportTotals().lines() == []


def test_held_back_rows_are_counted_with_the_option() -> None:
    totals = ExportTotals()
    totals.add({**PART, "refused": {"dicom-seg": {"flagged": 2, "doubtful": 1}}, "emptied": {}})
    not_exported, held_back = totals.lines()
    assert not_exported == "not exported as dicom-seg: 3 of 3 rows (2 flagged, 1 doubtful)"
    assert held_back.startswith("held back: 3 rows (2 flagged, 1 doubtful)")
    assert "--include-doubtful" in held_back


def test_counts_are_recorded_beside_the_reservation(tmp_path: Path) -> None:
    storage.write_json(str(tmp_path / "export.json"), {"where": "dice < 1"})
    totals = ExportTotals()
    totals.add(PART)
    totals.record(str(tmp_path))
    recorded = json.loads((tmp_path / "export.json").read_text())
    assert recorded["where"] == "dice < 1"
    assert (recorded["refused"], recorded["emptied"]) == (PART["refused"], PART["emptied"])


def test_class_masks_are_counted_by_image() -> None:
    totals = ExportTotals(Counter({"masks": 42, "class-masks": 42, "lung-masks": 1}))
    text = "42 masks, class-masks of 42 images, lung-masks of 1 image"
    assert totals.describe_written(("masks", "class-masks", "lung-masks")) == text
