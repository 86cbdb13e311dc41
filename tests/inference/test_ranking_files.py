"""predictions.csv and the closing lines of an inference."""

import csv
import logging
from pathlib import Path
from typing import Any

import pytest

from lungseg.inference import ranking_files
from lungseg.inference.part_plan import write_part
from lungseg.inference.ranking_files import log_most_doubtful, write_csv
from lungseg.predictions.parts import part_path
from lungseg.result_columns import PREDICTIONS


def row(name: str, doubt: float | None, flags: tuple[str, ...] = ()) -> dict[str, Any]:
    status = "ok" if doubt is not None else "rejected"
    ids = {"image_id": name, "dataset": "north", "source_uri": f"/x/{name}.png", "message": "", "codes": []}
    why = {"status": status, "doubt": doubt, "doubt_reason": f"reason of {name}", "flags": list(flags)}
    return {**dict.fromkeys(PREDICTIONS.names), **ids, **why}


@pytest.fixture
def out(tmp_path: Path) -> str:
    for number in range(10):
        rows = [row(f"{number}a", number / 20), row(f"{number}b", None)]
        write_part(part_path(str(tmp_path), number), rows, "x")
    write_part(part_path(str(tmp_path), 10), [row("flagged", 0.01, ("rotated",))], "x")
    return str(tmp_path)


def test_csv_has_every_row_of_every_part(out: str) -> None:
    most_doubtful = write_csv(out)
    with Path(out, "predictions.csv").open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines))
    ranked = ["flagged", *(f"{number}a" for number in reversed(range(10)))]
    assert [row["image_id"] for row in rows] == [*ranked, *(f"{number}b" for number in range(10))]
    assert [row["image_id"] for row in most_doubtful] == ranked[:5]


def test_no_csv_that_a_spreadsheet_cannot_hold(
    out: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ranking_files, "MAX_ROWS", 20)
    assert [row["image_id"] for row in write_csv(out)][:2] == ["flagged", "9a"]
    assert not Path(out, "predictions.csv").exists()
    assert "there are more than 20 rows" in caplog.text


def test_closing_lines_name_the_most_doubtful_files(out: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_most_doubtful(write_csv(out))
    assert caplog.messages[:3] == [
        "look at these images first (those with a flag that questions the mask, then by doubt):",
        "  flagged.png: doubt 0.010; reason of flagged",
        "  9a.png: doubt 0.450; reason of 9a",
    ]
