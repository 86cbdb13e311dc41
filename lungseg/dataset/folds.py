"""Fold assignment and the split of each run: pure functions of an index table and a seed.

All work on columns: an archive may have ten million rows, which would not fit into memory as Python objects.
scikit-learn's StratifiedGroupKFold does not fit: it assigns all images again when images are added.
"""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lungseg.config import Protocol
from lungseg.dataset.masked_rows import Positions, groups_within, masked, masked_rows
from lungseg.errors import SettingsError

Link = tuple[str, str]
"""Two images, as `dataset/image_id`, that must be on the same side of a split."""

GROUP, ASSIGNED_FOLD = "group", "assigned_fold"
"""Columns of `with_groups_and_folds`: the position of the first row of the row's group, and the fold of the group."""

# Images by which a fold may exceed the emptiest one. 0 would balance folds to one image, but move twice as many images
# when one is removed.
_MAX_IMBALANCE = 1
_TRAIN_ONLY, _NO_FOLD = -1, -2  # trained on in every fold; no fold yet
_CHUNK_ROWS = 1 << 20  # rows whose texts are Python objects at the same time


@dataclass(frozen=True)
class RunPlan:
    """One training run of a study: the datasets that it trains on, the held-out fold and the seed of the training.

    split_seed: seed of the folds. validates: whether the fold after the held-out fold is the validation fold, which is
    not trained on either.
    """

    protocol: Protocol
    train_on: tuple[str, ...]
    fold: int
    folds: int
    split_seed: int
    left_out: str = ""
    validates: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        """Return a readable name, unique within a study."""
        sources = {
            "pooled": "pooled",
            "source-to-source": f"from-{self.train_on[0]}",
            "leave-one-dataset-out": f"without-{self.left_out}",
        }
        seed = f"-seed{self.seed}" if self.seed else ""  # the default is not part of a name
        return f"all{seed}" if self.protocol == "all" else f"{sources[self.protocol]}-fold{self.fold}{seed}"


@dataclass(frozen=True, eq=False)
class Split:
    """Positions of index rows, i64[N], ascending: training, held-out fold, cross-dataset test, validation fold."""

    train: Positions
    held_out: Positions
    cross: Positions
    validation: Positions


def plan_study(
    protocols: Sequence[Protocol],
    datasets: Sequence[str],
    folds: int,
    only: Sequence[int],
    split_seed: int,
    validates: bool = False,
) -> list[RunPlan]:
    """List the runs of a study: `all` has one, `pooled` one per fold, the other protocols one per fold and dataset.

    Raises:
        SettingsError: leave-one-dataset-out with fewer than two datasets.

    """
    selected_folds = sorted(set(only)) or range(folds)
    runs = []
    for protocol in dict.fromkeys(protocols):
        for sources, left_out in _sources(protocol, tuple(datasets)):
            runs += [
                RunPlan(protocol, sources, fold, folds, split_seed, left_out, validates)
                for fold in (selected_folds if protocol != "all" else (0,))
            ]
    return runs


def with_groups_and_folds(index: pa.Table, linked: Sequence[Link], folds: int, seed: int) -> pa.Table:
    """Add the columns GROUP and ASSIGNED_FOLD, by which `split` divides the rows of all runs of a study.

    index: rows with the columns of schema.INDEX, those of several datasets one after the other. Rows without a mask
    change the folds of others only if they join two groups; `split` does not use theirs.

    Raises:
        SettingsError: a given fold does not exist.

    """
    groups, has_mask = group_rows(index, linked), masked(index)
    fold_of = np.full(index.num_rows, _TRAIN_ONLY, np.int16)
    fold_of[has_mask] = assign_folds(masked_rows(index), groups_within(groups, has_mask), folds, seed)
    index = index.append_column(GROUP, pa.array(groups, pa.int64()))
    return index.append_column(ASSIGNED_FOLD, pa.array(fold_of, pa.int16()))


def split(index: pa.Table, plan: RunPlan) -> Split:
    """Split the rows of `with_groups_and_folds` for a run; no patient, image or linked pair is on both sides.

    An image of another dataset whose group the run trains on is in no subset. Rows without a mask are trained on, if
    they are of a source or of a dataset without any mask, and nothing of their group is tested or validated. `all`
    trains on every row.

    Raises:
        SettingsError: a subset that the run needs is empty.

    """
    none = np.empty(0, np.int64)
    if plan.protocol == "all":
        return Split(np.arange(index.num_rows), none, none, none)
    groups, fold_of = index.column(GROUP).to_numpy(), index.column(ASSIGNED_FOLD).to_numpy()
    names, dataset_of = codes(index.column("dataset"))
    in_source = np.isin(dataset_of, [code for code, name in enumerate(names) if name in plan.train_on])
    has_mask = masked(index)
    is_source = in_source & has_mask
    is_held_out = is_source & (fold_of == plan.fold)
    is_validation = is_source & (fold_of == (plan.fold + 1) % plan.folds) & plan.validates & ~is_held_out
    is_used = np.zeros(index.num_rows, np.bool_)
    is_used[groups[is_source & ~is_held_out]] = True
    subsets = {
        "train": np.flatnonzero(is_source & ~is_held_out & ~is_validation),
        "held_out": np.flatnonzero(is_held_out),
        "validation": np.flatnonzero(is_validation),
    }
    for name in ("train", "held_out", *(["validation"] if plan.validates else [])):
        if not subsets[name].size:
            raise SettingsError(
                f"{plan.name}: the {name.replace('_', '-')} subset has none of {is_source.sum()} images, expected at "
                f"least one: lower --folds (now {plan.folds}), or add images"
            )
    split = Split(cross=np.flatnonzero(has_mask & ~in_source & ~is_used[groups]), **subsets)
    is_usable = ~has_mask & (in_source | ~np.isin(dataset_of, dataset_of[has_mask]))
    return split if has_mask.all() else _with_rows_without_masks(split, groups, is_usable)


def _with_rows_without_masks(split: Split, groups: Positions, is_usable: NDArray[np.bool_]) -> Split:
    """Add usable rows to the training rows, except where their group is tested or validated."""
    tested = np.concatenate([split.held_out, split.cross, split.validation])
    extra = np.flatnonzero(is_usable & ~np.isin(groups, groups[tested]))
    return replace(split, train=np.sort(np.concatenate([split.train, extra])))


def assign_folds(index: pa.Table, groups: Positions, folds: int, seed: int) -> NDArray[np.int16]:
    """Return the fold of each row's group, 0..folds-1, stratified by dataset and finding.

    A group whose rows have a `fold` from the archive keeps the first of them; -1 means trained on in every fold. The
    first row of any other group decides its fold. Candidates are the empty folds of that row's stratum, then the folds
    with at most one image of the stratum more than the emptiest. Among the candidates, the fold with the lowest hash of
    seed, fold and group wins. Where each group is one image, two folds differ by at most two images per stratum. Rows
    appended to a dataset move no earlier row, unless they link two groups or show a patient of a later dataset.
    Removing one of 688 images moves about 4 % of the others; shuffling the rows moves about 40 %.

    groups: of `group_rows`.

    Raises:
        SettingsError: a given fold does not exist.

    """
    findings, finding_of = codes(index.column("finding"))
    strata = codes(index.column("dataset"))[1] * (len(findings) + 1) + finding_of + 1
    filled: defaultdict[int, list[int]] = defaultdict(lambda: [0] * folds)
    fold_of = array("h", _given_folds(index, groups, folds).tobytes())
    prefixes = [f"{seed}/{fold}/".encode() for fold in range(folds)]
    for start in range(0, index.num_rows, _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        names = _patients(index.slice(start, _CHUNK_ROWS)).to_pylist()
        for name, stratum, group in zip(names, strata[rows].tolist(), groups[rows].tolist(), strict=True):
            counts, fold = filled[stratum], fold_of[group]
            if fold == _NO_FOLD:
                lowest = min(counts)
                limit = lowest + _MAX_IMBALANCE if lowest else 0  # each fold gets one image before any gets a second
                candidates = [number for number in range(folds) if counts[number] <= limit]
                fold = candidates[0] if len(candidates) == 1 else _lowest_hash(candidates, prefixes, name.encode())
                fold_of[group] = fold
            if fold >= 0:
                counts[fold] += 1
    return np.frombuffer(fold_of, np.int16)[groups]


def _given_folds(index: pa.Table, groups: Positions, folds: int) -> NDArray[np.int16]:
    """Return the fold that the archive gives to each group, at the position of its first row; else _NO_FOLD."""
    column = index.column("fold")
    rows = np.flatnonzero(column.is_valid().to_numpy())
    values = column.drop_null().to_numpy()
    too_high = rows[values >= folds]
    if too_high.size:
        first = too_high[0]
        raise SettingsError(
            f"{index.column('dataset')[first]} has its own folds, up to fold {column[first]}, expected 0 to "
            f"{folds - 1}: pass --folds {values.max() + 1} or more, or prepare it without splits_final.json"
        )
    given = np.full(index.num_rows, _NO_FOLD, np.int16)
    given[groups[rows[::-1]]] = values[::-1]  # the first row of a group is assigned last, and stays
    return given


def group_rows(index: pa.Table, linked: Sequence[Link] = ()) -> Positions:
    """Return the group of each row, i64[N]: the position of the first row of its group.

    Rows of one patient, with one pixel digest, or linked by a pair share a group. Rows appended later do not change
    the groups of earlier ones. Links to images that are not among the rows are ignored.
    """
    patients = _first_rows(_patients(index))
    same_picture = np.column_stack([patients, patients[_first_rows(index.column("pixel_digest"))]])
    pairs = np.concatenate([same_picture, patients[_linked_rows(index, linked)]])
    return _join(patients, np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0))


def group_names(index: pa.Table, groups: Positions) -> list[str]:
    """Return the name of each group: the patient of its first row, or its image where the patient is unknown."""
    names: list[str] = _patients(index.take(pa.array(groups))).to_pylist()
    return names


def codes(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """Return the different texts of a column, and the position of each row's text among them, i64[N]; -1 for null."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    encoded = encoded.unify_dictionaries().combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.fill_null(-1).to_numpy().astype(np.int64)


def _first_rows(column: pa.ChunkedArray) -> Positions:
    """Return for each row the position of the first row with the same text, i64[N]."""
    encoded = column.dictionary_encode().combine_chunks()
    same = encoded.indices.to_numpy()
    first = np.empty(len(encoded.dictionary), np.int64)
    first[same[::-1]] = np.arange(same.size)[::-1]  # of equal places, the last assignment stays
    firsts: Positions = first[same]
    return firsts


def _patients(index: pa.Table) -> pa.ChunkedArray:
    """Return `dataset/patient` of each row, or `dataset/image` where the patient is unknown."""
    patients = index.column("patient_id").fill_null("")
    known = pc.if_else(pc.equal(patients, ""), index.column("image_id"), patients)
    return pc.binary_join_element_wise(index.column("dataset").cast(pa.string()), known, "/")


def _linked_rows(index: pa.Table, linked: Sequence[Link]) -> NDArray[np.int64]:
    """Return the positions of the two images of each link, i64[M,2], without links to images that are not there."""
    ends = [pa.array([link[side] for link in linked], pa.string()) for side in (0, 1)]
    known = pc.unique(pa.chunked_array(ends))
    position_of = np.full(len(known), -1)
    for start in range(0, index.num_rows if linked else 0, _CHUNK_ROWS):
        rows = index.slice(start, _CHUNK_ROWS)
        keys = pc.binary_join_element_wise(rows.column("dataset").cast(pa.string()), rows.column("image_id"), "/")
        places = pc.index_in(keys, value_set=known)
        position_of[places.drop_null().to_numpy()] = start + np.flatnonzero(places.is_valid().to_numpy())
    pairs = np.column_stack([position_of[pc.index_in(end, value_set=known).to_numpy()] for end in ends])
    there: NDArray[np.int64] = pairs[(pairs >= 0).all(axis=1)]
    return there


def _join(patients: Positions, pairs: NDArray[np.int64]) -> Positions:
    """Join the groups of each pair. A group is the position of its first row, so the lower position remains."""
    parent: dict[int, int] = {}

    def root(group: int) -> int:
        while (above := parent.setdefault(group, group)) != group:
            parent[group] = parent[above]
            group = above
        return group

    for one, other in pairs.tolist():
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    joined = np.arange(patients.size)
    joined[list(parent)] = [root(group) for group in list(parent)]
    return joined[patients]


def _sources(protocol: Protocol, datasets: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    """List the training datasets of a protocol's runs, each with the dataset that is left out."""
    if protocol in ("pooled", "all"):
        return [(datasets, "")]
    if protocol == "source-to-source":
        return [((dataset,), "") for dataset in datasets]
    if len(datasets) < 2:
        raise SettingsError(
            f"--protocols leave-one-dataset-out with {len(datasets)} dataset ({', '.join(datasets)}), expected two or "
            "more: add another --data, or --protocols pooled"
        )
    return [(tuple(other for other in datasets if other != dataset), dataset) for dataset in datasets]


def _lowest_hash(candidates: Sequence[int], prefixes: Sequence[bytes], group: bytes) -> int:
    """Return the candidate with the lowest hash of seed, fold and group, the same on every machine."""
    return min(candidates, key=lambda fold: hashlib.sha256(prefixes[fold] + group).digest())
