"""Who is in which fold: nobody on both sides, nobody twice, and nobody moves when others come."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungseg.config import Protocol
from lungseg.data import folds
from lungseg.errors import SettingsError

# Names on both sides of "sha256" and of "~" in the order of letters.
DATASETS = ("montgomery", "shenzhen", "a", "z_9")
ROW = st.fixed_dictionaries(
    {
        "dataset": st.sampled_from(DATASETS),
        "patient_id": st.integers(0, 12).map(lambda number: f"p{number}"),
        "sha256": st.integers(0, 40).map(lambda number: f"{number * 7919 % 256:02x}"),
    }
)
ROWS = st.lists(ROW, min_size=1, max_size=40)
PROTOCOLS = get_args(Protocol)


def row(dataset: str, patient: str, picture: str) -> folds.Row:
    return {"dataset": dataset, "patient_id": patient, "sha256": picture}


def plan(number: int, count: int, datasets: Sequence[str] = DATASETS, seed: int = 0) -> folds.RunPlan:
    return folds.RunPlan("pooled" if len(datasets) > 1 else "source-to-source", tuple(datasets), number, count, seed)


def parts_or_none(rows: Sequence[folds.Row], run: folds.RunPlan) -> folds.Split | None:
    try:
        return folds.split(rows, run)
    except SettingsError:
        return None


def many(count: int = 60) -> list[folds.Row]:
    return [row(DATASETS[i % 2], f"p{i}", f"{i:04x}") for i in range(count)]


# Groups


@given(ROWS)
def test_a_patient_and_a_picture_are_in_one_group(rows: list[folds.Row]) -> None:
    groups = folds.group_rows(rows)
    assert len(groups) == len(rows)
    for key in (lambda one: (one["dataset"], one["patient_id"]), lambda one: one["sha256"]):
        by_key: dict[Any, set[str]] = {}
        for one, group in zip(rows, groups, strict=True):
            by_key.setdefault(key(one), set()).add(group)
        assert all(len(found) == 1 for found in by_key.values())


@given(ROWS)
def test_a_group_holds_no_more_than_it_must(rows: list[folds.Row]) -> None:
    """Groups are the connected parts of the graph whose edges are a common patient or picture."""
    parts: list[set[int]] = []
    for i, one in enumerate(rows):
        near = [
            part
            for part in parts
            if any(
                rows[j]["sha256"] == one["sha256"]
                or (rows[j]["dataset"], rows[j]["patient_id"]) == (one["dataset"], one["patient_id"])
                for j in part
            )
        ]
        parts = [part for part in parts if part not in near] + [{i}.union(*near)]
    assert len(set(folds.group_rows(rows))) == len(parts)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows: list[folds.Row], random: Any) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    groups = folds.group_rows(rows)
    assert folds.group_rows([rows[i] for i in order]) == [groups[i] for i in order]


def test_the_same_patient_id_in_two_data_sets_is_two_patients() -> None:
    first, second = folds.group_rows([row("a", "p1", "01"), row("z", "p1", "02")])
    assert first != second


def test_a_chain_of_patients_and_pictures_is_one_group() -> None:
    rows = [
        row("a", "p1", "01"),
        row("z", "q1", "02"),
        row("a", "p2", "03"),
        row("z", "q1", "01"),
        row("a", "p2", "02"),
    ]
    assert len(set(folds.group_rows(rows))) == 1


# Folds


@given(st.text(), st.integers(2, 20), st.integers(0, 1000))
def test_a_fold_is_one_of_the_folds_and_always_the_same(group: str, count: int, seed: int) -> None:
    fold = folds.fold_of(group, count, seed)
    assert 0 <= fold < count
    assert folds.fold_of(group, count, seed) == fold


def test_a_fold_is_the_same_on_every_machine() -> None:
    """Fixed values: a change of these moves patients between training and test of every study that was run."""
    found = [folds.fold_of(group, 5, seed) for group, seed in (("a/p1", 0), ("a/p2", 0), ("a/p3", 0), ("a/p1", 1))]
    # From `printf 0/a/p1 | sha256sum`, the first 16 digits modulo 5.
    assert found == [3, 2, 3, 1]


def test_folds_are_about_equally_full_and_a_seed_deals_anew() -> None:
    dealt = [[folds.fold_of(f"a/p{i}", 5, seed) for i in range(2000)] for seed in (0, 1)]
    for one in dealt:
        assert all(330 < count < 470 for count in Counter(one).values())
    same = sum(first == second for first, second in zip(*dealt, strict=True))
    assert 330 < same < 470


@given(ROWS, st.integers(2, 5), st.integers(0, 3), st.sets(st.sampled_from(DATASETS), min_size=1))
def test_nobody_is_on_both_sides(rows: list[folds.Row], count: int, seed: int, sources: set[str]) -> None:
    for number in range(count):
        parts = parts_or_none(rows, plan(number, count, sorted(sources), seed))
        if parts is None:
            continue
        learnt = [rows[i] for i in parts.train]
        tested = [rows[i] for i in (*parts.held_out, *parts.cross)]
        for keys in (("dataset", "patient_id"), ("sha256",)):
            known = {tuple(one[key] for key in keys) for one in learnt}
            assert not known & {tuple(one[key] for key in keys) for one in tested}


@given(ROWS, st.integers(2, 5), st.integers(0, 3), st.sets(st.sampled_from(DATASETS), min_size=1))
def test_every_image_is_held_out_in_exactly_one_fold(
    rows: list[folds.Row], count: int, seed: int, sources: set[str]
) -> None:
    own = [i for i, one in enumerate(rows) if one["dataset"] in sources]
    groups = folds.group_rows(rows)
    expected = {number: [i for i in own if folds.fold_of(groups[i], count, seed) == number] for number in range(count)}
    for number in range(count):
        parts = parts_or_none(rows, plan(number, count, sorted(sources), seed))
        if parts is None:
            assert len(expected[number]) in (0, len(own))
            continue
        assert list(parts.held_out) == expected[number]
        assert sorted((*parts.train, *parts.held_out)) == own
        assert not set(parts.cross) & set(own)


@given(ROWS, st.integers(2, 4))
def test_other_data_sets_are_tested_whole_but_for_what_was_learnt(rows: list[folds.Row], count: int) -> None:
    for number in range(count):
        parts = parts_or_none(rows, plan(number, count, ("shenzhen",)))
        if parts is None:
            continue
        groups = folds.group_rows(rows)
        learnt = {groups[i] for i in parts.train}
        assert set(parts.cross) == {
            i for i, one in enumerate(rows) if one["dataset"] != "shenzhen" and groups[i] not in learnt
        }


def test_a_picture_of_the_training_set_is_not_tested_in_another_data_set() -> None:
    rows = [*many(), row("twin", "t0", "0001"), row("twin", "t1", "ffff")]
    runs = [folds.split(rows, plan(number, 4, DATASETS[:2])) for number in range(4)]
    twin, stranger = len(rows) - 2, len(rows) - 1
    assert all(stranger in parts.cross for parts in runs)
    assert [twin in parts.cross for parts in runs] == [1 in parts.held_out for parts in runs]


@given(ROWS, ROWS, st.integers(2, 5))
def test_nobody_moves_when_strangers_come(rows: list[folds.Row], more: list[folds.Row], count: int) -> None:
    strangers = [row(one["dataset"], "new" + one["patient_id"], "new" + one["sha256"]) for one in more]
    before = [folds.fold_of(group, count, 0) for group in folds.group_rows(rows)]
    after = [folds.fold_of(group, count, 0) for group in folds.group_rows([*strangers, *rows])]
    assert after[len(strangers) :] == before


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_patient_does_not_move_when_another_picture_of_the_patient_comes(dataset: str) -> None:
    for number in range(40):
        known = row(dataset, "p1", f"{number:02x}")
        (before,) = folds.group_rows([known])
        for other in range(0, 256, 17):
            assert set(folds.group_rows([known, row(dataset, "p1", f"{other:02x}{number}")])) == {before}


# Parts and plans


@pytest.mark.parametrize("rows", [[], many(1), [row("a", "p1", f"{i:02x}") for i in range(9)]])
def test_a_fold_that_leaves_nothing_to_train_or_to_test_is_refused(rows: list[folds.Row]) -> None:
    with pytest.raises(
        SettingsError, match=r"pooled-fold0: \d images to train on and \d held out of \d.*--folds \(now 5\)"
    ):
        folds.split(rows, plan(0, 5))


def test_a_study_lists_each_fold_of_each_protocol_once() -> None:
    runs = folds.plan_study(("pooled", "source-to-source"), ("a", "z"), 3, (), seed=7)
    assert [run.name for run in runs] == [
        *("pooled-fold0", "pooled-fold1", "pooled-fold2"),
        *("from-a-fold0", "from-a-fold1", "from-a-fold2"),
        *("from-z-fold0", "from-z-fold1", "from-z-fold2"),
    ]
    assert {run.train_on for run in runs[:3]} == {("a", "z")}
    assert {(run.folds, run.seed) for run in runs} == {(3, 7)}


@given(
    st.lists(st.sampled_from(PROTOCOLS), min_size=1, max_size=4),
    st.lists(st.sampled_from(DATASETS), min_size=1, max_size=4, unique=True),
    st.integers(2, 6),
    st.data(),
)
def test_no_two_runs_of_a_study_share_a_name(
    protocols: list[Protocol], datasets: list[str], count: int, data: st.DataObject
) -> None:
    only = data.draw(st.lists(st.integers(0, count - 1), max_size=8))
    runs = folds.plan_study(protocols, datasets, count, only, seed=0)
    assert len({run.name for run in runs}) == len(runs)
    assert {run.fold for run in runs} == set(only or range(count))
    each = len(set(only)) or count
    assert len(runs) == each * sum(1 if protocol == "pooled" else len(datasets) for protocol in set(protocols))
    assert all("/" not in run.name for run in runs)
