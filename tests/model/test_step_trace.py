"""A profiled function: equal results, and a Chrome trace of some calls after the first ones."""

import json
import re
from pathlib import Path

import pytest
import torch

from lungseg.model.step_trace import traced


def recorded_calls(path: Path) -> list[int]:
    names = {event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]}
    return sorted(int(name.split()[-1]) for name in names if re.fullmatch(r"lungseg call \d+", name))


@pytest.mark.parametrize(
    ("calls", "recorded"), [(1, [0]), (2, [1]), (5, [2, 3, 4]), (40, [10, 11, 12, 13, 14])], ids=str
)
def test_a_few_calls_after_the_first_ones_are_recorded(calls: int, recorded: list[int], tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    work = traced(lambda values, *, add: (values * 2).sum() + add, calls, str(path), on_gpu=False)
    results = [float(work(torch.full((4, 4), float(number)), add=1.0)) for number in range(calls)]
    assert results == [32.0 * number + 1.0 for number in range(calls)]
    assert recorded_calls(path) == recorded
    events = json.loads(path.read_text())["traceEvents"]
    assert "aten::sum" in {event.get("name") for event in events}


def test_an_error_ends_the_recording_and_is_raised(tmp_path: Path) -> None:
    def fail(_: int) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        traced(fail, 1, str(tmp_path / "a.json"), on_gpu=False)(0)
    assert not list(tmp_path.iterdir())
    traced(int, 1, str(tmp_path / "b.json"), on_gpu=False)(0)  # a profiler that still ran would refuse another one
    assert recorded_calls(tmp_path / "b.json") == [0]
