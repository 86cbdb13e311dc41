"""Fold assignment: no group on both sides, no image twice, and no image moves when others are added."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from lungseg.arrays import Row
from lungseg.config import Protocol
from lungseg.dataset import folds
from lungseg.errors import SettingsError
from tests.fold_rows import Subsets, assign_folds, group_rows, split

# Names that sort before and after "pixel_digest", "image" and "patient".
DATASETS = ("montgomery", "shenzhen", "a", "z_9")
FINDINGS = ("normal", "abnormal", None)
PROTOCOLS: tuple[Protocol, ...] = ("pooled", "source-to-source", "leave-one-dataset-out")


def row(dataset: str, image: str, patient: str = "", pixel_digest: str = "", finding: str | None = None) -> Row:
    return {
        "dataset": dataset,
        "image_id": image,
        "patient_id": patient or image,
        "pixel_digest": pixel_digest or f"of {dataset} {image}",
        "finding": finding,
    }


def key(row: Row) -> str:
    return f"{row['dataset']}/{row['image_id']}"


@st.composite
def index_rows(draw: st.DrawFn, datasets: Sequence[str] = DATASETS, max_size: int = 40) -> list[Row]:
    """Draw index rows, ordered by dataset; some share a patient or a pixel digest."""
    names = st.tuples(
        st.sampled_from(sorted(datasets)), st.integers(0, 12), st.integers(0, 40), st.sampled_from(FINDINGS)
    )
    drawn = sorted(draw(st.lists(names, min_size=1, max_size=max_size)), key=lambda row: row[0])
    return [
        row(dataset, f"i{i}", f"p{patient}", f"{digest:02x}", finding)
        for i, (dataset, patient, digest, finding) in enumerate(drawn)
    ]


@st.composite
def rows_and_links(draw: st.DrawFn) -> tuple[list[Row], list[folds.Link]]:
    rows = draw(index_rows())
    image = st.sampled_from([key(row) for row in rows])
    return rows, draw(st.lists(st.tuples(image, image), max_size=4))


def single_image_rows(count: int, datasets: Sequence[str] = DATASETS[:2], start: int = 0) -> list[Row]:
    return [row(dataset, f"i{i}", finding=FINDINGS[i % 2]) for dataset in datasets for i in range(start, start + count)]


def folds_by_image(rows: Sequence[Row], count: int, seed: int = 0, linked: Sequence[folds.Link] = ()) -> dict[str, int]:
    assigned = assign_folds(rows, group_rows(rows, linked), count, seed)
    return {key(row): fold for row, fold in zip(rows, assigned, strict=True)}


def plan(number: int, count: int, datasets: Sequence[str] = DATASETS, seed: int = 0) -> folds.RunPlan:
    return folds.RunPlan("pooled" if len(datasets) > 1 else "source-to-source", tuple(datasets), number, count, seed)


def split_or_none(rows: Sequence[Row], run: folds.RunPlan, linked: Sequence[folds.Link] = ()) -> Subsets | None:
    try:
        return split(rows, run, linked)
    except SettingsError:
        return None


# Groups


@given(rows_and_links())
def test_groups_are_connected_by_patients_images_and_links(
    drawn: tuple[list[Row], list[folds.Link]],
) -> None:
    rows, linked = drawn
    parts: list[set[int]] = []
    for i, row in enumerate(rows):

        def joined(j: int, row: Row = row) -> bool:
            other = rows[j]
            return (
                other["pixel_digest"] == row["pixel_digest"]
                or (other["dataset"], other["patient_id"]) == (row["dataset"], row["patient_id"])
                or (key(row), key(other)) in linked
                or (key(other), key(row)) in linked
            )

        linked_parts = [part for part in parts if any(joined(j) for j in part)]
        parts = [part for part in parts if part not in linked_parts] + [{i}.union(*linked_parts)]
    groups = group_rows(rows, linked)
    members: defaultdict[str, set[int]] = defaultdict(set)
    for i, group in enumerate(groups):
        members[group].add(i)
    assert sorted(map(sorted, members.values())) == sorted(map(sorted, parts))


@given(rows_and_links())
def test_a_group_is_named_after_its_first_row(drawn: tuple[list[Row], list[folds.Link]]) -> None:
    rows, linked = drawn
    groups = group_rows(rows, linked)
    for group in set(groups):
        first = rows[groups.index(group)]
        assert group == f"{first['dataset']}/{first['patient_id']}"


def test_patient_ids_are_separate_per_dataset() -> None:
    first, second = group_rows([row("a", "1", "p1"), row("z", "2", "p1")])
    assert first != second


def test_images_without_a_patient_are_separate_groups() -> None:
    rows = [{**row("a", name), "patient_id": ""} for name in "123"]
    assert group_rows(rows) == ["a/1", "a/2", "a/3"]


def test_links_to_missing_images_are_ignored() -> None:
    rows = single_image_rows(3, ("a",))
    links = [("a/i0", "a/gone"), ("a/gone", "a/i1")]
    assert group_rows(rows, links) == group_rows(rows)


# Folds


@given(index_rows(), st.integers(2, 5), st.integers(0, 3))
def test_each_group_is_in_one_fold(rows: list[Row], count: int, seed: int) -> None:
    groups = group_rows(rows)
    assigned = assign_folds(rows, groups, count, seed)
    assert len(assigned) == len(rows)
    assert set(assigned) <= set(range(count))
    assert len(set(zip(groups, assigned, strict=True))) == len(set(groups))


def test_folds_are_the_same_on_every_machine() -> None:
    """If these fixed values change, patients move between training and test in all earlier studies."""
    # The first is the fold f with the least `printf 0/f/a/i0 | sha256sum`.
    assert list(folds_by_image(single_image_rows(10, ("a",)), 5).values()) == [1, 2, 4, 1, 2, 3, 0, 4, 3, 0]
    assert list(folds_by_image(single_image_rows(10, ("a",)), 5, seed=1).values()) != [1, 2, 4, 1, 2, 3, 0, 4, 3, 0]


@given(
    st.lists(st.tuples(st.sampled_from(DATASETS), st.sampled_from(FINDINGS)), min_size=1, max_size=80),
    st.integers(2, 6),
    st.integers(0, 3),
)
def test_strata_are_balanced_to_two_images(drawn: list[tuple[str, str | None]], count: int, seed: int) -> None:
    rows = [row(dataset, f"i{i}", finding=finding) for i, (dataset, finding) in enumerate(drawn)]
    assigned = folds_by_image(rows, count, seed)
    for stratum in set(drawn):
        assigned_folds = [assigned[key(row)] for row in rows if (row["dataset"], row["finding"]) == stratum]
        counts = [assigned_folds.count(fold) for fold in range(count)]
        assert max(counts) - min(counts) <= 2
        assert min(counts) > 0 or max(counts) == 1


@given(index_rows(), st.lists(st.integers(0, 12), max_size=20), st.integers(2, 5), st.integers(0, 3))
def test_appended_rows_move_no_earlier_row(rows: list[Row], patients: list[int], count: int, seed: int) -> None:
    """Append known and new patients, in the first and in the last dataset."""
    before = folds_by_image(rows, count, seed)
    for dataset in (rows[0]["dataset"], rows[-1]["dataset"]):
        added = [
            row(dataset, f"new{i}", f"p{patient}" if i % 2 else "", finding=FINDINGS[i % 3])
            for i, patient in enumerate(patients)
        ]
        grown = sorted([*rows, *added], key=lambda row: row["dataset"])
        after = folds_by_image(grown, count, seed)
        assert {name: after[name] for name in before} == before


@given(index_rows(datasets=("a",)), index_rows(datasets=("z_9",)), st.integers(2, 5))
def test_another_dataset_moves_no_row(first: list[Row], second: list[Row], count: int) -> None:
    renamed = [{**item, "pixel_digest": "other " + item["pixel_digest"]} for item in second]
    combined = folds_by_image([*first, *renamed], count)
    assert combined == {**folds_by_image(first, count), **folds_by_image(renamed, count)}


def test_another_seed_changes_the_folds() -> None:
    rows = single_image_rows(300)
    first, second = folds_by_image(rows, 5, 0), folds_by_image(rows, 5, 1)
    same = sum(first[name] == second[name] for name in first)
    assert 60 < same < 180


def test_removing_an_image_moves_few_rows() -> None:
    """Check the shares stated by assign_folds with the stratum sizes of Shenzhen and Montgomery."""
    sizes = {("m", "normal"): 80, ("m", "abnormal"): 58, ("s", "normal"): 263, ("s", "abnormal"): 287}
    rows = [
        row(dataset, f"{finding}{i}", finding=finding)
        for (dataset, finding), size in sizes.items()
        for i in range(size)
    ]
    fewer, shuffled = [], []
    for seed in range(12):
        before, chance = folds_by_image(rows, 5, seed), random.Random(seed)
        removed = chance.randrange(len(rows))
        for changed, moved in (
            (rows[:removed] + rows[removed + 1 :], fewer),
            (chance.sample(rows, len(rows)), shuffled),
        ):
            after = folds_by_image(changed, 5, seed)
            moved.append(sum(after[name] != before[name] for name in after) / len(after))
    assert 0.01 < sum(fewer) / len(fewer) < 0.08
    assert 0.3 < sum(shuffled) / len(shuffled) < 0.5


# Splits


@given(rows_and_links(), st.integers(2, 5), st.integers(0, 3), st.sets(st.sampled_from(DATASETS), min_size=1))
def test_no_patient_image_or_link_crosses_a_split(
    drawn: tuple[list[Row], list[folds.Link]], count: int, seed: int, sources: set[str]
) -> None:
    rows, linked = drawn
    for number in range(count):
        subsets = split_or_none(rows, plan(number, count, sorted(sources), seed), linked)
        if subsets is None:
            continue
        trained = [rows[i] for i in subsets.train]
        tested = [rows[i] for i in (*subsets.held_out, *subsets.cross)]
        for names in (("dataset", "patient_id"), ("pixel_digest",)):
            known = {tuple(row[name] for name in names) for row in trained}
            assert not known & {tuple(row[name] for name in names) for row in tested}
        sides = {**{key(row): 0 for row in trained}, **{key(row): 1 for row in tested}}
        assert all(sides[first] == sides[second] for first, second in linked if {first, second} <= sides.keys())


@given(index_rows(), st.integers(2, 5), st.integers(0, 3), st.sets(st.sampled_from(DATASETS), min_size=1))
def test_every_image_is_held_out_in_exactly_one_fold(rows: list[Row], count: int, seed: int, sources: set[str]) -> None:
    own = [i for i, row in enumerate(rows) if row["dataset"] in sources]
    fold_of = folds_by_image(rows, count, seed)
    for number in range(count):
        expected = [i for i in own if fold_of[key(rows[i])] == number]
        subsets = split_or_none(rows, plan(number, count, sorted(sources), seed))
        if subsets is None:
            assert len(expected) in (0, len(own))
            continue
        assert list(subsets.held_out) == expected
        assert sorted((*subsets.train, *subsets.held_out)) == own
        assert not set(subsets.cross) & set(own)


@given(rows_and_links(), st.integers(3, 5), st.integers(0, 3), st.sets(st.sampled_from(DATASETS), min_size=1))
def test_the_validation_fold_is_the_next_held_out_fold(
    drawn: tuple[list[Row], list[folds.Link]], count: int, seed: int, sources: set[str]
) -> None:
    rows, linked = drawn
    groups = group_rows(rows, linked)
    for number in range(count):
        plain = plan(number, count, sorted(sources), seed)
        subsets = split_or_none(rows, replace(plain, validates=True), linked)
        if subsets is None:
            continue
        without = split(rows, plain, linked)
        assert without.validation == ()
        assert subsets.held_out == without.held_out
        assert sorted((*subsets.train, *subsets.validation)) == list(without.train)
        assert subsets.cross == without.cross
        following = split_or_none(rows, plan((number + 1) % count, count, sorted(sources), seed), linked)
        assert following is not None
        assert following.held_out == subsets.validation
        kept = {groups[i] for i in subsets.validation}
        assert not kept & {groups[i] for i in (*subsets.train, *subsets.held_out, *subsets.cross)}


def test_an_empty_validation_fold_is_refused() -> None:
    rows = single_image_rows(2, ("a",))
    fold_of = folds_by_image(rows, 5)
    held = fold_of["a/i0"]
    alone = replace(plan(held, 5), validates=True)
    expected = "train" if fold_of["a/i1"] == (held + 1) % 5 else "validation"
    with pytest.raises(SettingsError, match=f"the {expected} subset has none of 2 images, expected at least one"):
        split(rows, alone)
    with pytest.raises(SettingsError, match="the train subset"):
        split(single_image_rows(30), replace(plan(0, 2), validates=True))


@given(index_rows(), st.integers(2, 4))
def test_cross_dataset_tests_exclude_trained_groups_only(rows: list[Row], count: int) -> None:
    for number in range(count):
        subsets = split_or_none(rows, plan(number, count, ("shenzhen",)))
        if subsets is None:
            continue
        groups = group_rows(rows)
        trained = {groups[i] for i in subsets.train}
        assert set(subsets.cross) == {
            i for i, row in enumerate(rows) if row["dataset"] != "shenzhen" and groups[i] not in trained
        }


@pytest.mark.parametrize("by_link", [False, True])
def test_training_images_are_not_tested_in_another_dataset(by_link: bool) -> None:
    known = single_image_rows(30)
    twin = row("twin", "t0", pixel_digest="" if by_link else known[1]["pixel_digest"])
    rows = [*known, twin, row("twin", "t1")]
    links = [(key(known[1]), key(twin))] if by_link else []
    runs = [split(rows, plan(number, 4, DATASETS[:2]), links) for number in range(4)]
    assert all(len(rows) - 1 in subsets.cross for subsets in runs)
    assert [len(rows) - 2 in subsets.cross for subsets in runs] == [1 in subsets.held_out for subsets in runs]
    assert sum(1 in subsets.held_out for subsets in runs) == 1


@pytest.mark.parametrize("rows", [[], single_image_rows(1, ("a",)), [row("a", f"i{i}", "p1") for i in range(9)]])
def test_an_empty_training_or_held_out_fold_is_refused(rows: list[Row]) -> None:
    with pytest.raises(
        SettingsError, match=r"pooled-fold0: the (train|held-out) subset has none of \d images.*--folds \(now 5\)"
    ):
        split(rows, plan(0, 5))


# Plans


def test_a_study_lists_each_fold_of_each_protocol_once() -> None:
    runs = folds.plan_study(PROTOCOLS, ("a", "m", "z"), 2, (), split_seed=7)
    assert [(run.name, run.train_on) for run in runs] == [
        ("pooled-fold0", ("a", "m", "z")),
        ("pooled-fold1", ("a", "m", "z")),
        *((f"from-{name}-fold{fold}", (name,)) for name in "amz" for fold in (0, 1)),
        *(
            (f"without-{name}-fold{fold}", others)
            for name, others in (("a", ("m", "z")), ("m", ("a", "z")), ("z", ("a", "m")))
            for fold in (0, 1)
        ),
    ]
    assert {(run.folds, run.split_seed, run.validates) for run in runs} == {(2, 7, False)}
    assert all(run.validates for run in folds.plan_study(PROTOCOLS, ("a", "m", "z"), 3, (), 7, validates=True))


def test_protocol_all_is_one_run_on_every_image() -> None:
    rows = single_image_rows(20, ("a", "m"))
    (run,) = folds.plan_study(("all",), ("a", "m"), 5, (3,), split_seed=0)
    assert (run.name, run.train_on) == ("all", ("a", "m"))
    assert split(rows, run) == Subsets(tuple(range(40)))


def test_a_left_out_dataset_is_tested_completely() -> None:
    rows = single_image_rows(20, ("a", "m", "z"))
    for run in folds.plan_study(("leave-one-dataset-out",), ("a", "m", "z"), 4, (), split_seed=0):
        subsets = split(rows, run)
        assert {rows[i]["dataset"] for i in subsets.cross} == {run.left_out}
        assert len(subsets.cross) == 20
        assert {rows[i]["dataset"] for i in subsets.train} == set(run.train_on) == {"a", "m", "z"} - {run.left_out}
        assert len(subsets.train) + len(subsets.held_out) == 40


def test_leaving_out_the_only_dataset_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"leave-one-dataset-out with 1 dataset \(a\), expected two or more"):
        folds.plan_study(("pooled", "leave-one-dataset-out"), ("a",), 3, (), split_seed=0)
    assert [run.name for run in folds.plan_study(("source-to-source",), ("a",), 2, (), 0)] == [
        "from-a-fold0",
        "from-a-fold1",
    ]


@given(
    st.lists(st.sampled_from(PROTOCOLS), min_size=1, max_size=4),
    st.lists(st.sampled_from(DATASETS), min_size=2, max_size=4, unique=True),
    st.integers(2, 6),
    st.data(),
)
def test_no_two_runs_of_a_study_share_a_name(
    protocols: list[Protocol], datasets: list[str], count: int, data: st.DataObject
) -> None:
    only = data.draw(st.lists(st.integers(0, count - 1), max_size=8))
    runs = folds.plan_study(protocols, datasets, count, only, split_seed=0)
    assert len({run.name for run in runs}) == len(runs)
    assert {run.fold for run in runs} == set(only or range(count))
    each = len(set(only)) or count
    assert Counter(run.protocol for run in runs) == {
        protocol: each * (1 if protocol == "pooled" else len(datasets)) for protocol in protocols
    }
    assert all("/" not in run.name for run in runs)


# Folds of the archive


def given_rows(given: Sequence[int | None]) -> list[Row]:
    return [{**row("a", f"i{i}"), "fold": fold} for i, fold in enumerate(given)]


def test_folds_of_the_archive_are_kept() -> None:
    given = [0, 2, 1, 0, 2, 1, 0, 1]
    rows = [*given_rows(given), *single_image_rows(10, ("z_9",))]
    for seed in range(3):
        assigned = assign_folds(rows, group_rows(rows), 3, seed)
        assert assigned[: len(given)] == given
        assert assigned[len(given) :] == assign_folds(rows[8:], group_rows(rows[8:]), 3, seed)


def test_images_of_no_validation_set_are_always_trained_on() -> None:
    rows = given_rows([0, 1, 2, -1, -1])
    for fold in range(3):
        plan = folds.RunPlan("pooled", ("a",), fold, 3, 0)
        assert {3, 4} <= set(split(rows, plan).train)


def test_linked_images_of_two_given_folds_stay_together() -> None:
    rows = given_rows([0, 1, 2])
    groups = group_rows(rows, [("a/i0", "a/i2")])
    assert assign_folds(rows, groups, 3, 0) == [0, 1, 0]


def test_more_given_folds_than_planned_are_refused() -> None:
    rows = given_rows([0, 4, None])
    with pytest.raises(SettingsError, match=r"a has its own folds, up to fold 4, expected 0 to 2: pass --folds 5"):
        assign_folds(rows, group_rows(rows), 3, 0)


# Images without masks


@st.composite
def rows_of_which_some_lack_masks(draw: st.DrawFn) -> list[Row]:
    """Draw rows of two datasets with masks and one without; one without a mask may share the patient of another."""
    rows = [
        {**row(dataset, f"{dataset}{i}", f"p{i}"), "mask_size": 1}
        for dataset in DATASETS[:2]
        for i in range(draw(st.integers(4, 7)))
    ]
    for dataset in DATASETS[:3]:
        for i, shared in enumerate(draw(st.lists(st.none() | st.integers(0, len(rows) - 1), max_size=3))):
            extra = row(dataset, f"{dataset}-extra{i}")
            if shared is not None:
                extra["pixel_digest"] = rows[shared]["pixel_digest"]
            rows.append({**extra, "mask_size": 0})
    return sorted(rows, key=lambda one: str(one["dataset"]))


@given(rows_of_which_some_lack_masks(), st.sampled_from(PROTOCOLS), st.booleans(), st.integers(0, 2))
def test_images_without_masks_change_no_split_of_the_others(
    rows: list[Row], protocol: Protocol, validates: bool, fold: int
) -> None:
    kept = [row for row in rows if row["mask_size"]]
    names = list(dict.fromkeys(row["dataset"] for row in kept))
    run = folds.plan_study([protocol], names, 3, [fold], 0, validates)[0]
    without, together = split(kept, run), split(rows, run)
    positions = [i for i, row in enumerate(rows) if row["mask_size"]]
    assert together.held_out == tuple(positions[i] for i in without.held_out)
    assert together.cross == tuple(positions[i] for i in without.cross)
    assert together.validation == tuple(positions[i] for i in without.validation)
    assert {*together.train} & {*positions} == {positions[i] for i in without.train}
    groups = group_rows(rows)
    tested = {groups[i] for i in together.held_out + together.cross + together.validation}
    with_masks = {row["dataset"] for row in kept}
    for i, row in enumerate(rows):
        if not row["mask_size"]:
            is_usable = row["dataset"] in run.train_on or row["dataset"] not in with_masks
            assert (i in together.train) == (is_usable and groups[i] not in tested)


def test_protocol_all_trains_on_images_without_masks_too() -> None:
    rows = [row("a", "i0"), {**row("a", "i1"), "mask_size": 0}, {**row("b", "i2"), "mask_size": 0}]
    assert split(rows, folds.RunPlan("all", ("a",), 0, 2, 0)) == Subsets((0, 1, 2))
