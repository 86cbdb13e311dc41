"""Work that may end its process: deaths are counted, and one piece's death is not another's."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lungseg import storage
from lungseg.errors import InputError
from lungseg.ingest.crash_isolation import ISOLATE_AFTER, MAX_CRASHES, map_isolated, mark_started


class Deadly(str):
    """A name that ends the process to which it is sent."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def length(text: str) -> int:
    return len(text)


def process(_: object) -> int:
    return os.getpid()


def refuse(text: str) -> str:
    if text == "bad":
        raise InputError(f"{text}: refused")
    return text


@pytest.fixture
def note(tmp_path: Path) -> str:
    return str(tmp_path / "begun" / "part.json")


def test_work_that_begins_again_while_its_note_is_there_has_died_once_more(note: str) -> None:
    assert [mark_started(note) for _ in range(4)] == [0, 1, 2, 3]


def test_work_that_ended_well_leaves_nothing_to_count(note: str) -> None:
    mark_started(note)
    mark_started(note)
    storage.delete(note)
    assert mark_started(note) == 0


def test_pieces_of_work_are_counted_each_for_itself(tmp_path: Path) -> None:
    mark_started(str(tmp_path / "one.json"))
    assert (mark_started(str(tmp_path / "two.json")), mark_started(str(tmp_path / "one.json"))) == (0, 1)


def test_work_is_done_apart_before_it_is_given_up() -> None:
    assert 0 < ISOLATE_AFTER < MAX_CRASHES


def test_what_ends_its_process_is_none_and_the_others_are_done_in_order() -> None:
    items = ["a", "bb", Deadly("x"), "ccc", Deadly("y")]
    assert list(map_isolated(length, items)) == [1, 2, None, 3, None]


def test_work_is_done_in_another_process_and_a_death_begins_a_new_one() -> None:
    first, second, dead, third = map_isolated(process, ["a", "b", Deadly("x"), "c"])
    assert first == second != third
    assert dead is None
    assert os.getpid() not in (first, third)


def test_nothing_to_do_is_nothing_done() -> None:
    assert list(map_isolated(length, [])) == []


def test_an_error_is_raised_as_it_is_and_taken_for_no_death() -> None:
    done: Iterator[str | None] = map_isolated(refuse, ["good", "bad", "left"])
    assert next(done) == "good"
    with pytest.raises(InputError, match="bad: refused"):
        next(done)
