"""The plan of tars: every input once, the same anywhere, and what was planned stays where it was."""

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from lungseg import storage
from lungseg.config import PreprocessSettings
from lungseg.errors import InputError
from lungseg.prepare.shard_plan import ShardPlan, assign_to_shards, plan_shards, planned_ids, save_plan
from lungseg.schema import Record

SMALL = PreprocessSettings(size=64)
Numbers = st.lists(st.integers(0, 60), unique=True).map(sorted)


def record(dataset: str, number: int) -> Record:
    return Record(f"{number:02d}", dataset, f"/x/{dataset}/{number:02d}.png")


def records(numbers: list[int]) -> list[Record]:
    return [record("north", number) for number in numbers]


def pairs(cut: dict[str, list[Record]]) -> list[tuple[str, str]]:
    return [(name, one.image_uri) for name, inside in cut.items() for one in inside]


@pytest.mark.parametrize("per_shard", [1, 2, 3, 7, 100])
def test_a_plan_holds_every_input_once_and_in_order(per_shard: int) -> None:
    found = [record(dataset, number) for number in range(7) for dataset in ("south", "north")]
    plans = plan_shards(found, "/out", SMALL, per_shard)
    assert [one for plan in plans for one in plan.records] == sorted(found, key=lambda one: one.dataset)
    assert all(1 <= len(plan.records) <= per_shard for plan in plans)
    assert all({one.dataset for one in plan.records} == {storage.name_of(plan.folder)} for plan in plans)
    assert len({(plan.folder, plan.name) for plan in plans}) == len(plans)
    assert plans[0].name == "north-000000"
    assert plans[0].folder == "/out/north"
    assert [plan.name for plan in plans] == sorted(plan.name for plan in plans)


@pytest.mark.parametrize(("size", "shard_mib", "expected"), [(512, 32, 201), (512, 1, 6), (4096, 1, 1), (64, 1, 158)])
def test_tars_are_sized_by_bytes(size: int, shard_mib: int, expected: int) -> None:
    plans = plan_shards(records(list(range(500))), "/out", PreprocessSettings(size=size), 1000, shard_mib)
    assert len(plans[0].records) == expected


def test_no_records_make_no_plan() -> None:
    assert plan_shards([], "/out", SMALL, 4) == []


def test_a_data_set_cannot_climb_out_of_the_folder() -> None:
    with pytest.raises(InputError, match="leaves its folder"):
        plan_shards([record("../../etc", 1)], "/out", SMALL, 4)


@given(Numbers, st.integers(1, 9))
def test_a_first_cut_fills_every_tar_but_the_last(numbers: list[int], room: int) -> None:
    cut = assign_to_shards(records(numbers), [], "north", room)
    assert [one for inside in cut.values() for one in inside] == records(numbers)
    assert [len(inside) for inside in list(cut.values())[:-1]] == [room] * max(0, len(cut) - 1)
    assert list(cut) == [f"north-{number:06d}" for number in range(len(cut))]


@given(Numbers, Numbers, st.integers(1, 9))
def test_what_was_planned_stays_and_what_is_new_makes_new_tars(old: list[int], new: list[int], room: int) -> None:
    before = assign_to_shards(records(old), pairs({}), "north", room)
    everything = sorted({*old, *new})
    after = assign_to_shards(records(everything), pairs(before), "north", room)
    assert {name: after[name] for name in before} == before
    assert sorted(one.image_uri for inside in after.values() for one in inside) == [
        one.image_uri for one in records(everything)
    ]
    assert all(len(inside) <= room for inside in after.values())
    assert assign_to_shards(records(everything), pairs(after), "north", room) == after


@given(Numbers, st.sets(st.integers(0, 60)), st.integers(1, 9))
def test_what_is_gone_leaves_the_others_where_they_were(old: list[int], gone: set[int], room: int) -> None:
    before = assign_to_shards(records(old), [], "north", room)
    left = [number for number in old if number not in gone]
    after = assign_to_shards(records(left), pairs(before), "north", room)
    where = {uri: name for name, uri in pairs(before)}
    assert all(where[uri] == name for name, uri in pairs(after))
    assert len(pairs(after)) == len(left)


def test_one_file_listed_twice_keeps_both_places() -> None:
    twice = [record("north", 1), record("north", 2), record("north", 1)]
    before = assign_to_shards(twice, [], "north", 2)
    assert assign_to_shards(twice, pairs(before), "north", 2) == before


def test_a_saved_plan_is_kept_until_the_settings_change(tmp_path: Path) -> None:
    first = plan_shards(records([1, 3, 5]), str(tmp_path), SMALL, 2)
    save_plan(first)
    more = plan_shards(records([0, 1, 2, 3, 4, 5]), str(tmp_path), SMALL, 2)
    assert more[:2] == first
    assert [[one.image_id for one in plan.records] for plan in more[2:]] == [["00", "02"], ["04"]]
    other = plan_shards(records([0, 1, 2, 3, 4, 5]), str(tmp_path), SMALL, 3)
    assert [[one.image_id for one in plan.records] for plan in other] == [["00", "01", "02"], ["03", "04", "05"]]


def test_a_damaged_plan_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_plan(plan_shards(records([1, 2, 3]), str(tmp_path), SMALL, 2))
    (tmp_path / "north" / "plan.parquet").write_bytes(b"PAR1 torn")
    plans = plan_shards(records([0, 1, 2, 3]), str(tmp_path), SMALL, 2)
    assert [len(plan.records) for plan in plans] == [2, 2]
    assert "planning anew" in caplog.text


def test_a_plan_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Planned anew, an archive that has grown would be cut otherwise, and every finished tar made again."""
    save_plan(plan_shards(records([1, 2, 3]), str(tmp_path), SMALL, 2))

    def away(path: str) -> bytes:
        raise InputError(f"{path}: the bucket does not answer (503): try again")

    monkeypatch.setattr(storage, "read_bytes", away)
    with pytest.raises(InputError, match="does not answer"):
        plan_shards(records([0, 1, 2, 3]), str(tmp_path), SMALL, 2)
    with pytest.raises(InputError, match="does not answer"):
        planned_ids(records([0, 1, 2, 3]), str(tmp_path))
    assert "planning anew" not in caplog.text


def test_a_saved_plan_says_who_holds_an_id(tmp_path: Path) -> None:
    refused = Record("01", "north", "/x/north/01.jpg", status="rejected", reason="duplicate_id: x")
    lateral = Record("03", "north", "/x/north/03.jpg", status="rejected", reason="lateral_view: x")
    empty = Record("row_1", "north", "", status="rejected", reason="no_image: x")
    found = [refused, *records([1, 2]), lateral, empty, record("south", 1)]
    assert planned_ids(found, str(tmp_path)) == {}
    plans = plan_shards(found, str(tmp_path), SMALL, 2)
    for folder in ("north", "south"):
        save_plan([plan for plan in plans if plan.folder.endswith(folder)])
    held = {("north", f"/x/north/{name}"): name[:2] for name in ("01.png", "02.png", "03.jpg")}
    assert planned_ids(found, str(tmp_path)) == {**held, ("south", "/x/south/01.png"): "01"}
    (tmp_path / "south" / "plan.parquet").write_bytes(b"PAR1 torn")
    assert planned_ids(found, str(tmp_path)) == held
    path = str(tmp_path / "north" / "plan.parquet")
    storage.write_table(path, storage.read_table(path).drop_columns(["image_id"]))  # as written before there were ids
    assert planned_ids(found, str(tmp_path)) == {}
    assert plan_shards(found, str(tmp_path), SMALL, 2) == plans


def test_another_archive_is_refused(tmp_path: Path) -> None:
    save_plan(plan_shards(records([1, 2, 3]), str(tmp_path), SMALL, 2))
    with pytest.raises(InputError, match="holds a data set of another archive"):
        plan_shards([Record("1", "north", "/y/1.png")], str(tmp_path), SMALL, 2)


def test_a_plan_travels_as_text() -> None:
    made = Record(
        "a", "north", "/x/a.png", ("/m/l.png", "/m/r.png"), ("lung", "lung"), spacing_mm=0.2, flags=("odd", "dim")
    )
    plan = ShardPlan("/out/north", "north-000000", (made,), SMALL, 7, "reject")
    assert ShardPlan.from_json(plan.to_json()) == plan
