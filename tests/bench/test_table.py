"""The printed tables: every name and number in full."""

import pytest

from lungseg.bench.table import print_tables
from lungseg.bench.timing import Stage, StageTimes


def test_long_names_and_numbers_are_printed_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    stages = [
        Stage("training", "load a batch (12 processes)", 1, lambda _: None, "its samples / workers"),
        Stage("inference", "open an X-ray", 1, lambda _: None, "read, decode, resize"),
    ]
    times = [StageTimes(stage, [123456.0], [98765.0], [23456.0], [9876.0], [45678.0]) for stage in stages]
    lines = [{"workers": 8, "images_per_second": 4000.0, "speedup": 6.0}]
    print_tables("a title", times, {"ranks of a training step": lines}, ["a note"])
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in printed if "123456" in line]
    assert [row.split("  ")[1] for row in rows] == [stage.name for stage in stages]
    for row, stage in zip(rows, stages, strict=True):
        assert stage.limit_name in row
        assert row.split()[-1] == "5.3"  # 123456 / 23456, on a GPU
        assert {"98765", "45678", "23456", "9876"} <= set(row.split())
    assert any(line.split() == ["8", "4000.0", "6.00", "75%"] for line in printed)
    assert (printed[0], printed[-1]) == ("a title", "a note")
