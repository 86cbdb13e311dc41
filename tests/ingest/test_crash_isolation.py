"""Crashes of a task are counted, and an isolated item that crashes does not affect the others."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lungseg import storage
from lungseg.errors import InputError
from lungseg.ingest.crash_isolation import ISOLATE_AFTER, MAX_CRASHES, map_isolated, mark_started


class CrashOnUnpickle(str):
    """A string that ends the process to which it is sent."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def length(text: str) -> int:
    return len(text)


def process_id(_: object) -> int:
    return os.getpid()


def refuse(text: str) -> str:
    if text == "bad":
        raise InputError(f"{text}: refused")
    return text


@pytest.fixture
def marker(tmp_path: Path) -> str:
    return str(tmp_path / "begun" / "part.json")


def test_each_start_over_a_marker_counts_one_crash(marker: str) -> None:
    assert [mark_started(marker) for _ in range(4)] == [0, 1, 2, 3]


def test_deleted_marker_resets_the_count(marker: str) -> None:
    mark_started(marker)
    mark_started(marker)
    storage.delete(marker)
    assert mark_started(marker) == 0


def test_markers_count_separately(tmp_path: Path) -> None:
    mark_started(str(tmp_path / "one.json"))
    assert (mark_started(str(tmp_path / "two.json")), mark_started(str(tmp_path / "one.json"))) == (0, 1)


def test_items_are_isolated_before_a_task_is_given_up() -> None:
    assert 0 < ISOLATE_AFTER < MAX_CRASHES


def test_item_that_crashes_its_process_gives_none() -> None:
    items = ["a", "bb", CrashOnUnpickle("x"), "ccc", CrashOnUnpickle("y")]
    assert list(map_isolated(length, items)) == [1, 2, None, 3, None]


def test_items_run_in_another_process_replaced_after_a_crash() -> None:
    first, second, crashed, third = map_isolated(process_id, ["a", "b", CrashOnUnpickle("x"), "c"])
    assert first == second != third
    assert crashed is None
    assert os.getpid() not in (first, third)


def test_no_items_give_no_results() -> None:
    assert list(map_isolated(length, [])) == []


def test_error_is_raised_unchanged() -> None:
    results: Iterator[str | None] = map_isolated(refuse, ["good", "bad", "other"])
    assert next(results) == "good"
    with pytest.raises(InputError, match="bad: refused"):
        next(results)
