"""A listing, CSV or Parquet, with a row for each X-ray: one record a row, whatever the row holds."""

import difflib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from lungseg import storage
from lungseg.config import ListingColumns
from lungseg.errors import InputError
from lungseg.imaging.dicom.pseudonym import pseudonym
from lungseg.ingest.file_names import dataset_name, dataset_names, image_id, short_digest, stem
from lungseg.ingest.reason_codes import Note, reject
from lungseg.ingest.sources.demographics import parse_age_group, parse_sex
from lungseg.ingest.sources.mask_matching import ONE_SIDED_MASK
from lungseg.ingest.sources.text_tables import column_names, read_columns
from lungseg.schema import Record

_OPTIONAL = ("patient_id", "dataset", "finding", "age", "sex", "view")
# A decubitus view is taken lying on a side, but frontally.
_LATERAL = re.compile(r"(?!.*decub)(.*\blat(eral)?\b.*|l|ll|rl|llat|rlat)", re.IGNORECASE)
# What programs write where nobody is named: as an id, it would make all of these one patient.
_NOBODY = frozenset({"nan", "na", "n/a", "<na>", "none", "null", "unknown", "-"})

Masks = list[tuple[str, str]]
"""(class, column) of each mask."""


@dataclass(frozen=True)
class _Listing:
    """What a listing holds: its cells by role (absent roles are missing), its masks' cells by class, its images."""

    path: str
    cells: dict[str, list[str]]
    masks: list[tuple[str, list[str]]]
    uris: list[str]

    def cell(self, role: str, row: int) -> str:
        return self.cells[role][row] if role in self.cells else ""


def read_listing(path: str, columns: ListingColumns, dataset: str = "") -> list[Record]:
    """List the X-rays of a CSV or Parquet file, as many records as it has rows, sorted by data set and id.

    Relative paths start at the listing's folder. `dataset` names the rows whose own data set is not told, the listing's
    name where it is empty. Rows are counted from 1 below the header. No image is opened.

    Raises:
        InputError: the file is missing, unreadable or without rows, or has not a column that is named.

    """
    path = storage.resolve(path)
    storage.stat(path)
    listing = _open(path, columns)
    ids = _image_ids(listing.uris)
    titles = [title.lower() for title in listing.cells.get("dataset", [])]
    named = dataset_names(sorted({*titles} - {""}), "")
    own = dataset or dataset_name(storage.name_of(path).rpartition(".")[0])
    first: dict[tuple[str, str], int] = {}
    records = []
    for row, uri in enumerate(listing.uris):
        title = named.get(titles[row], own) if titles else own
        earlier = first.setdefault((title, uri), row)
        records.append(_record(listing, row, ids.get(uri) or f"row_{row + 1:07d}_without_image", (title, earlier)))
    return _sort(records)


def keep_ids(records: Sequence[Record], held: Mapping[tuple[str, str], str]) -> list[Record]:
    """Give a listing's records the ids that they held before, (dataset, image_uri) to id, and sort them again.

    Rows that are added may move the folder that holds all images, or bring a second file of one name: the ids of the
    earlier rows, and so their tars, stay. A new record whose id an earlier one has gets a digest of its URI besides.
    """
    places = {(record.dataset, record.image_uri) for record in records}
    taken = {(place[0], own) for place, own in held.items() if place in places}
    kept = []
    for record in records:
        own = held.get((record.dataset, record.image_uri))
        if own is None:
            clash = (record.dataset, record.image_id) in taken
            own = f"{record.image_id}-{short_digest(record.image_uri)}" if clash else record.image_id
        alone = record.patient_id == record.image_id  # nobody is named, so the image stands for the patient
        kept.append(replace(record, image_id=own, patient_id=own if alone else record.patient_id))
    return _sort(kept)


def pseudonymise_patient(record: Record, key: bytes) -> Record:
    """Put a pseudonym for the patient's id of a listing; where there is none, the image's id stands for it."""
    if record.patient_id == record.image_id:
        return record
    return replace(record, patient_id=pseudonym(record.patient_id, key))


def _sort(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record.dataset, record.image_id, record.image_uri))


def _open(path: str, columns: ListingColumns) -> _Listing:
    content = storage.read_bytes(path)
    names = column_names(content, path)
    roles, masks = _choose(columns, names, path)
    cells = read_columns(content, path, [*roles.values(), *(column for _, column in masks)])
    if not cells[roles["image"]]:
        raise InputError(f"{path}: no rows, expected one for each image: fill it in")
    folder = storage.parent_of(path)
    return _Listing(
        path,
        {role: cells[column] for role, column in roles.items()},
        [(kind, [_uri(folder, cell) for cell in cells[column]]) for kind, column in masks],
        [_uri(folder, cell) for cell in cells[roles["image"]]],
    )


def _choose(columns: ListingColumns, names: Sequence[str], path: str) -> tuple[dict[str, str], Masks]:
    """Find the column of each role, and of each mask; what is not named is taken where its usual name is there."""
    chosen = {"image": columns.image, **{role: getattr(columns, role) or role for role in _OPTIONAL}}
    masks = [_mask_column(entry, names) for entry in columns.masks or ("mask",)]
    named = [columns.image, *(getattr(columns, role) for role in _OPTIONAL)]
    if columns.masks:
        named += [column for _, column in masks]
    for column in filter(None, named):
        _require(column, names, path)
    roles = {role: column for role, column in chosen.items() if column in names}
    return roles, [(kind, column) for kind, column in masks if column in names]


def _mask_column(entry: str, names: Sequence[str]) -> tuple[str, str]:
    kind, equals, column = entry.partition("=")
    return (kind, column) if equals and entry not in names else ("lung", entry)


def _require(column: str, names: Sequence[str], path: str) -> None:
    count = names.count(column)
    if count == 1:
        return
    if count:
        raise InputError(f"{path}: {count} columns are called {column}: rename all but one")
    folded = {name.lower(): name for name in names}
    near = difflib.get_close_matches(column.lower(), folded, 1)
    raise InputError(
        f"{path}: no column {column}; it has {', '.join(names)}: "
        + (f"did you mean {folded[near[0]]}?" if near else "name one of these")
    )


def _uri(folder: str, cell: str) -> str:
    """Name a cell's file: relative to the listing's folder, or as it stands; `` for an empty cell."""
    if not cell or "://" in cell or cell.startswith("/"):
        return cell
    scheme, divider, place = folder.rpartition("://")
    return scheme + divider + posixpath.normpath(f"{place}/{quote(cell) if divider else cell}")


def _image_ids(uris: Iterable[str]) -> dict[str, str]:
    """Give each image an id from its path below the folder that holds them all; a digest parts those of one id."""
    parts = {uri: uri.split("/") for uri in dict.fromkeys(uris) if uri}
    if not parts:
        return {}
    low, high = (extreme(part[:-1] for part in parts.values()) for extreme in (min, max))
    pairs = enumerate(zip(low, high, strict=False))
    common = next((i for i, (one, other) in pairs if one != other), min(len(low), len(high)))
    paths = {uri: "/".join(part[common:]) for uri, part in parts.items()}
    paths = {uri: unquote(path) if "://" in uri else path for uri, path in paths.items()}
    ids = {uri: image_id(stem(path)) for uri, path in paths.items()}
    counts = Counter(ids.values())
    return {uri: own if counts[own] == 1 else f"{own}-{short_digest(paths[uri])}" for uri, own in ids.items()}


def _record(listing: _Listing, row: int, own: str, known: tuple[str, int]) -> Record:
    """Make a row's record; `known` are its data set and the first row with the same image."""
    masks = [(kind, cells[row]) for kind, cells in listing.masks if cells[row]]
    note = _refusal(listing, row, known[1])
    patient = listing.cell("patient_id", row)
    record = Record(
        image_id=own,
        dataset=known[0],
        image_uri=listing.uris[row],
        mask_uris=tuple(uri for _, uri in masks),
        mask_classes=tuple(kind for kind, _ in masks),
        patient_id=own if patient.lower() in _NOBODY else patient or own,
        finding=listing.cell("finding", row) or None,
        age_group=parse_age_group(listing.cell("age", row)),
        sex=parse_sex(listing.cell("sex", row)),
        view=listing.cell("view", row).upper() or None,
    )
    return reject(record, note) if note else record


def _refusal(listing: _Listing, row: int, earlier: int) -> Note | None:
    """Return why a row cannot be used; None where it can."""
    what = f"row {row + 1} of {storage.name_of(listing.path)}"
    if not listing.uris[row]:
        return Note("no_image", f"{what} names no image: fill in the cell, or remove the row")
    if earlier != row:
        return Note("listed_twice", f"{what} names the same image as row {earlier + 1}: remove one of them")
    if _LATERAL.fullmatch(listing.cell("view", row)):
        return Note("lateral_view", f"{what} is a lateral view, expected a frontal one: remove the row")
    lungs = {bool(cells[row]) for kind, cells in listing.masks if kind == "lung"}
    return ONE_SIDED_MASK if len(lungs) > 1 else None
