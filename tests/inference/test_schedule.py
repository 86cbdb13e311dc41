"""A plan that grows while its parts are predicted: bounded windows, exactly-once parts, and the same plan again."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lungseg import storage
from lungseg.errors import InputError
from lungseg.inference import part_plan, schedule
from lungseg.inference.items import Item
from lungseg.inference.plan_stream import PlanStream
from lungseg.inference.schedule import Schedule
from lungseg.predictions.parts import part_path
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import Record

PLAN = {"archive": "/films", "model": "ab", "part_size": 2, "runs": ["a"], "checkpoints": ["/runs/a"]}


def items(count: int, size: int = 5) -> Iterator[Item]:
    for number in range(count):
        yield Item(Record(f"i{number}", "north", f"/films/i{number}.png"), stats=((size, 7),))


def scheduled(out: Path, listed: Iterator[Item]) -> Schedule:
    return Schedule(str(out), PLAN, PlanStream(listed, 2, "settings"), 2)


def predict(out: Path, window: list[part_plan.PlannedPart], status: str = "ok") -> list[int]:
    """Write the parts of a window; return their numbers."""
    for part in window:
        rows: list[dict[str, Any]] = [
            {
                **dict.fromkeys(PREDICTIONS.names),
                **{"image_id": item.record.image_id, "dataset": "north", "source_uri": item.record.image_uri},
                **{"status": status, "codes": [], "flags": []},
            }
            for item in part_plan.unpack_items(part.items)
        ]
        part_plan.write_part(part_path(str(out), part.number), rows, part.digest)
    return [part.number for part in window]


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_WINDOW_IMAGES", 6)


def test_parts_come_once_in_order_in_bounded_windows(tmp_path: Path, small_windows: None) -> None:
    plan = scheduled(tmp_path, items(21))
    assert [predict(tmp_path, window) for window in plan.windows()] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    assert (plan.images, plan.parts, plan.is_complete) == (21, 11, True)
    written = storage.read_json(str(tmp_path / "plan.json"))
    again = scheduled(tmp_path, items(21))
    assert list(again.windows()) == []
    assert (again.kept_parts, again.kept.statuses.total()) == (11, 21)
    assert storage.read_json(str(tmp_path / "plan.json")) == written
    assert written["images"] == 21


def test_first_parts_are_predicted_before_the_listing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_FIRST_WAIT_S", 0.0)
    rest = threading.Event()

    def slow() -> Iterator[Item]:
        for number, item in enumerate(items(9)):
            if number == 4:
                assert rest.wait(60)
            yield item

    plan = scheduled(tmp_path, slow())
    windows = plan.windows()
    done = predict(tmp_path, next(windows))
    assert not plan.is_complete
    assert "digest" not in storage.read_json(str(tmp_path / "plan.json"))
    rest.set()
    done += [number for window in windows for number in predict(tmp_path, window)]
    assert done == [0, 1, 2, 3, 4]
    whole = scheduled(tmp_path / "whole", items(9))
    assert [number for window in whole.windows() for number in predict(tmp_path / "whole", window)] == done
    plans = [storage.read_json(str(folder / "plan.json")) for folder in (tmp_path, tmp_path / "whole")]
    assert plans[0] == plans[1]


def test_a_job_killed_while_it_listed_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_FIRST_WAIT_S", 0.0)
    killed = threading.Event()

    def endless() -> Iterator[Item]:
        yield from items(4)
        killed.wait(60)

    first = scheduled(tmp_path, endless())
    done = predict(tmp_path, next(first.windows()))
    again = scheduled(tmp_path, items(7))
    rest = [number for window in again.windows() for number in predict(tmp_path, window)]
    killed.set()
    assert sorted([*done, *rest]) == [0, 1, 2, 3]
    assert again.kept_parts == len(done)
    assert storage.read_json(str(tmp_path / "plan.json"))["images"] == 7


def test_files_that_changed_since_a_killed_listing_are_refused(tmp_path: Path) -> None:
    predict(tmp_path, next(scheduled(tmp_path, items(3)).windows()))
    plan = storage.read_json(str(tmp_path / "plan.json"))
    listed = {name: value for name, value in plan.items() if name not in ("images", "digest", "reference")}
    storage.write_json(str(tmp_path / "plan.json"), listed)
    with pytest.raises(InputError, match=r"part-000000\.parquet belongs to another plan"):
        list(scheduled(tmp_path, items(3, size=6)).windows())


def test_a_grown_archive_is_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    for window in scheduled(tmp_path, items(4)).windows():
        predict(tmp_path, window)
    with pytest.raises(InputError, match="images 4, now 5"):
        scheduled(tmp_path, items(5))
    with pytest.raises(InputError, match="files that have changed since then"):
        scheduled(tmp_path, items(4, size=6))


def test_an_error_of_the_listing_is_raised(tmp_path: Path) -> None:
    def broken() -> Iterator[Item]:
        yield from items(3)
        raise InputError("the disk is away")

    with pytest.raises(InputError, match="the disk is away"):
        list(scheduled(tmp_path, broken()).windows())


def test_parts_with_failed_rows_come_last(tmp_path: Path, small_windows: None) -> None:
    for window in scheduled(tmp_path, items(8)).windows():
        predict(tmp_path, window, "failed" if window[0].number == 0 else "ok")
    Path(part_path(str(tmp_path), 3)).unlink()
    again = scheduled(tmp_path, items(8))
    assert again.remaining == 4
    assert [[part.number for part in window] for window in again.windows()] == [[3, 0, 1], [2]]
