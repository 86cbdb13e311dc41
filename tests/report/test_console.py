import re

import pytest

from lungseg.report import console
from lungseg.report.result_table import ResultLine
from lungseg.report.study_results import RunTable, Study
from lungseg.study.cross_dataset import summarise


def _show(capsys: pytest.CaptureFixture[str], run: str, dataset: str) -> str:
    names = ("dice", "dice_p5", "dice_min", "iou", "pixel_accuracy")
    named = {"run": run, "fold": 0, "role": "held-out", "dataset": dataset}
    line = ResultLine(named, {"images": 138, **dict.fromkeys(names, 0.98765)}, ())
    about = {
        "runs": 1, "train_on": ["a", "b"], "protocol": "pooled", "aggregation": "mean over images",
        "resolution": "64 px", "threshold": 0.5,
    }  # fmt: skip
    console.print_report(
        Study("trial", "/trial", (run,), (RunTable(about, (line,), ()),), {}, (), summarise([])), [], None, ["one"]
    )
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", ["40", "80", "200"])
@pytest.mark.parametrize("dataset", ["montgomery", "ChinaSet_AllFiles_of_a_long_name"])
def test_no_figure_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str, dataset: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = _show(capsys, "from-montgomery-fold0-1a2b3c4d", dataset)
    assert max(map(len, shown.splitlines())) <= max(100, int(columns))
    assert re.search(r"held-out .*138( +0\.9877){5}", shown)
    assert "trained on a + b" in shown
    assert "mean over images, at 64 px, threshold 0.5" in shown
    assert "Note: one" in shown


def test_a_name_is_no_markup_and_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    shown = _show(capsys, "[red]run[/red]", "\x1b[31mred:smile:")
    assert "[red]run[/red]" in shown
    assert "?[31mred:smile:" in shown
    assert "\x1b" not in shown


def test_a_figure_in_words() -> None:
    assert console.format_number(0.98765, 4) == "0.9877"
    assert console.format_number(None, 4) == "-"
    assert console.format_number("north", None) == "north"
    assert console.format_counts({}) == "none"
