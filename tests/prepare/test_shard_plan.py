"""Assignment of inputs to tars, and how it is kept when the archive changes."""

from pathlib import Path
from typing import Any

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


def pairs(shards: dict[str, list[Record]]) -> list[tuple[str, str]]:
    return [(name, record.image_uri) for name, inside in shards.items() for record in inside]


@pytest.mark.parametrize("images_per_shard", [1, 2, 3, 7, 100])
def test_plan_has_every_input_once_in_order(images_per_shard: int) -> None:
    listed = [record(dataset, number) for number in range(7) for dataset in ("south", "north")]
    plans = plan_shards(listed, "/out", SMALL, images_per_shard)
    assert [entry for plan in plans for entry in plan.records] == sorted(listed, key=lambda entry: entry.dataset)
    assert all(1 <= len(plan.records) <= images_per_shard for plan in plans)
    assert all({entry.dataset for entry in plan.records} == {storage.name_of(plan.folder)} for plan in plans)
    assert len({(plan.folder, plan.name) for plan in plans}) == len(plans)
    assert plans[0].name == "north-000000"
    assert plans[0].folder == "/out/north"
    assert [plan.name for plan in plans] == sorted(plan.name for plan in plans)


@pytest.mark.parametrize(("size", "shard_mib", "expected"), [(512, 32, 201), (512, 1, 6), (4096, 1, 1), (64, 1, 158)])
def test_tars_are_sized_by_bytes(size: int, shard_mib: int, expected: int) -> None:
    plans = plan_shards(records(list(range(500))), "/out", PreprocessSettings(size=size), 1000, shard_mib)
    assert len(plans[0].records) == expected


def test_no_records_give_no_plans() -> None:
    assert plan_shards([], "/out", SMALL, 4) == []


def test_dataset_name_cannot_leave_the_folder() -> None:
    with pytest.raises(InputError, match="leaves its folder"):
        plan_shards([record("../../etc", 1)], "/out", SMALL, 4)


@given(Numbers, st.integers(1, 9))
def test_first_plan_fills_all_tars_but_the_last(numbers: list[int], max_inputs: int) -> None:
    shards = assign_to_shards(records(numbers), [], "north", max_inputs)
    assert [entry for inside in shards.values() for entry in inside] == records(numbers)
    assert [len(inside) for inside in list(shards.values())[:-1]] == [max_inputs] * max(0, len(shards) - 1)
    assert list(shards) == [f"north-{number:06d}" for number in range(len(shards))]


@given(Numbers, Numbers, st.integers(1, 9))
def test_new_inputs_go_into_new_tars(old: list[int], new: list[int], max_inputs: int) -> None:
    before = assign_to_shards(records(old), pairs({}), "north", max_inputs)
    everything = sorted({*old, *new})
    after = assign_to_shards(records(everything), pairs(before), "north", max_inputs)
    assert {name: after[name] for name in before} == before
    assert sorted(entry.image_uri for inside in after.values() for entry in inside) == [
        entry.image_uri for entry in records(everything)
    ]
    assert all(len(inside) <= max_inputs for inside in after.values())
    assert assign_to_shards(records(everything), pairs(after), "north", max_inputs) == after


@given(Numbers, st.sets(st.integers(0, 60)), st.integers(1, 9))
def test_removed_inputs_do_not_move_others(old: list[int], removed: set[int], max_inputs: int) -> None:
    before = assign_to_shards(records(old), [], "north", max_inputs)
    left = [number for number in old if number not in removed]
    after = assign_to_shards(records(left), pairs(before), "north", max_inputs)
    earlier = {uri: name for name, uri in pairs(before)}
    assert all(earlier[uri] == name for name, uri in pairs(after))
    assert len(pairs(after)) == len(left)


def test_file_listed_twice_keeps_both_tars() -> None:
    twice = [record("north", 1), record("north", 2), record("north", 1)]
    before = assign_to_shards(twice, [], "north", 2)
    assert assign_to_shards(twice, pairs(before), "north", 2) == before


def test_saved_plan_is_kept_when_the_archive_grows(tmp_path: Path) -> None:
    first = plan_shards(records([1, 3, 5]), str(tmp_path), SMALL, 2)
    save_plan(first)
    more = plan_shards(records([0, 1, 2, 3, 4, 5]), str(tmp_path), SMALL, 2)
    assert more[:2] == first
    assert [[entry.image_id for entry in plan.records] for plan in more[2:]] == [["00", "02"], ["04"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preprocess": PreprocessSettings(size=128)}, r"--preprocess\.size 64, now 128"),
        (
            {"preprocess": PreprocessSettings(size=64, classes=("lung", "heart"))},
            "--preprocess.classes lung, now lung heart",
        ),
        ({"images_per_shard": 3}, r"images per tar \(--images-per-shard, --shard-mib\) 2, now 3"),
        ({"odd_masks": "reject"}, "--odd-masks flag, now reject"),
    ],
)
def test_other_settings_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    start: dict[str, Any] = {"preprocess": SMALL, "images_per_shard": 2}
    save_plan(plan_shards(records([1, 2]), str(tmp_path), **start))
    before = (tmp_path / "north" / "plan.parquet").read_bytes()
    with pytest.raises(InputError, match=rf"{tmp_path}/north was prepared with other settings \({message}\): repeat"):
        plan_shards(records([1, 2, 3]), str(tmp_path), **{**start, **settings})
    assert (tmp_path / "north" / "plan.parquet").read_bytes() == before


def test_other_landmarks_write_all_tars_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The folder of --match-to may be the archive itself, which grows."""

    def matched(*landmarks: float) -> PreprocessSettings:
        return PreprocessSettings(size=64, histogram="match", landmarks=landmarks)

    save_plan(plan_shards(records([1, 3]), str(tmp_path), matched(1.0, 2.0), 2))
    plans = plan_shards(records([0, 1, 3]), str(tmp_path), matched(1.0, 3.0), 2)
    assert [[entry.image_id for entry in plan.records] for plan in plans] == [["00", "01"], ["03"]]
    assert "--match-to gives other landmarks than before: all its tars are written again" in caplog.text


def test_damaged_plan_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_plan(plan_shards(records([1, 2, 3]), str(tmp_path), SMALL, 2))
    (tmp_path / "north" / "plan.parquet").write_bytes(b"PAR1 cut")
    plans = plan_shards(records([0, 1, 2, 3]), str(tmp_path), SMALL, 2)
    assert [len(plan.records) for plan in plans] == [2, 2]
    assert "making a new plan" in caplog.text


def test_temporarily_unreadable_plan_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A new plan of a grown archive would change every finished tar."""
    save_plan(plan_shards(records([1, 2, 3]), str(tmp_path), SMALL, 2))

    def unavailable(path: str) -> bytes:
        raise InputError(f"{path}: the bucket does not answer (503): try again")

    monkeypatch.setattr(storage, "read_bytes", unavailable)
    with pytest.raises(InputError, match="does not answer"):
        plan_shards(records([0, 1, 2, 3]), str(tmp_path), SMALL, 2)
    with pytest.raises(InputError, match="does not answer"):
        planned_ids(records([0, 1, 2, 3]), str(tmp_path))
    assert "making a new plan" not in caplog.text


def test_saved_plan_keeps_image_ids(tmp_path: Path) -> None:
    duplicate = Record("01", "north", "/x/north/01.jpg", status="rejected", codes=("duplicate_id",))
    lateral = Record("03", "north", "/x/north/03.jpg", status="rejected", codes=("lateral_view",))
    empty = Record("row_1", "north", "", status="rejected", codes=("no_image",))
    listed = [duplicate, *records([1, 2]), lateral, empty, record("south", 1)]
    assert planned_ids(listed, str(tmp_path)) == {}
    plans = plan_shards(listed, str(tmp_path), SMALL, 2)
    for folder in ("north", "south"):
        save_plan([plan for plan in plans if plan.folder.endswith(folder)])
    planned = {("north", f"/x/north/{name}"): name[:2] for name in ("01.png", "02.png", "03.jpg")}
    assert planned_ids(listed, str(tmp_path)) == {**planned, ("south", "/x/south/01.png"): "01"}
    (tmp_path / "south" / "plan.parquet").write_bytes(b"PAR1 cut")
    assert planned_ids(listed, str(tmp_path)) == planned
    path = str(tmp_path / "north" / "plan.parquet")
    storage.write_table(path, storage.read_table(path).drop_columns(["image_id"]))  # as written before there were ids
    assert planned_ids(listed, str(tmp_path)) == {}
    assert plan_shards(listed, str(tmp_path), SMALL, 2) == plans


def test_plan_of_another_archive_is_refused(tmp_path: Path) -> None:
    save_plan(plan_shards(records([1, 2, 3]), str(tmp_path), SMALL, 2))
    with pytest.raises(InputError, match="holds a dataset of another archive"):
        plan_shards([Record("1", "north", "/y/1.png")], str(tmp_path), SMALL, 2)


def test_plan_survives_json() -> None:
    made = Record(
        "a", "north", "/x/a.png", ("/m/l.png", "/m/r.png"), ("lung", "lung"), spacing_mm=0.2, flags=("odd", "dim")
    )
    plan = ShardPlan("/out/north", "north-000000", (made,), SMALL, 7, "reject")
    assert ShardPlan.from_json(plan.to_json()) == plan
