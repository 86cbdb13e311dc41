"""Read a listing, a CSV or Parquet file with a row for each X-ray; every row becomes a record."""

import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from lungseg import storage
from lungseg.config import ListingColumns
from lungseg.config.class_names import ONE_CLASS
from lungseg.errors import ImageError, InputError
from lungseg.imaging.dicom.pseudonym import pseudonym
from lungseg.imaging.dicom.tags import refuse_view
from lungseg.ingest.file_names import (
    dataset_name,
    dataset_names,
    image_id,
    normal_form,
    short_digest,
    stem,
    unnamed_patient,
)
from lungseg.ingest.reason_codes import Note, reject
from lungseg.ingest.sources.demographics import parse_age_group, parse_sex
from lungseg.ingest.sources.listing_columns import find_columns
from lungseg.ingest.sources.mask_matching import ONE_SIDED_MASK, has_one_side
from lungseg.ingest.sources.stored_names import stored_names
from lungseg.ingest.sources.text_tables import column_names, read_columns
from lungseg.ingest.views import classify_listed_view
from lungseg.schema import Record

# What programs write for a missing patient id; taken as an id, it would make all these images one patient's.
_MISSING = frozenset({"nan", "na", "n/a", "<na>", "none", "null", "unknown", "-"})


@dataclass(frozen=True)
class _Listing:
    """Content of a listing: cells by role, without roles that have no column; mask uris by class; image uris."""

    path: str
    cells: dict[str, list[str]]
    masks: list[tuple[str, list[str]]]
    uris: list[str]

    def cell(self, role: str, row: int) -> str:
        return self.cells[role][row] if role in self.cells else ""


def read_listing(
    path: str, columns: ListingColumns, dataset: str = "", classes: Sequence[str] = ONE_CLASS
) -> list[Record]:
    """List the X-rays of a CSV or Parquet file: one record a row, sorted by dataset and id.

    Relative paths start at the folder of the listing. `dataset` names rows without a dataset of their own; if it is
    empty, the name of the listing does. Messages count rows from 1 below the header. classes: as in `find_columns`. No
    image is opened.

    Raises:
        InputError: the file is missing, unreadable or without rows, or a named column does not exist.

    """
    path = storage.resolve(path)
    storage.stat(path)
    listing = _open(path, columns, classes)
    ids = image_ids(listing.uris)
    titles = [title.lower() for title in listing.cells.get("dataset", [])]
    names = dataset_names(sorted({*titles} - {""}), "")
    default = dataset or dataset_name(storage.name_of(path).rpartition(".")[0])
    first_rows: dict[tuple[str, str], int] = {}
    records = []
    for row, uri in enumerate(listing.uris):
        name = names.get(titles[row], default) if titles else default
        first_row = first_rows.setdefault((name, uri), row)
        row_id = ids.get(uri) or f"row_{row + 1:07d}_without_image"
        records.append(_record(listing, row, row_id, name, first_row))
    return _sort(records)


def keep_ids(records: Sequence[Record], earlier_ids: Mapping[tuple[str, str], str]) -> list[Record]:
    """Give records of a listing the ids that an earlier plan gave them, and sort them again.

    earlier_ids: (dataset, image_uri) to id. Added rows may change the common folder of all images, or bring a second
    file of one name. The earlier rows keep their ids, and so their tars. A new record with an id of an earlier one
    gets a digest of its URI appended.
    """
    present = {(record.dataset, record.image_uri) for record in records}
    taken = {(key[0], earlier_id) for key, earlier_id in earlier_ids.items() if key in present}
    kept = []
    for record in records:
        new_id = earlier_ids.get((record.dataset, record.image_uri))
        if new_id is None:
            is_taken = (record.dataset, record.image_id) in taken
            new_id = f"{record.image_id}-{short_digest(record.image_uri)}" if is_taken else record.image_id
        has_patient = record.patient_id != record.image_id
        kept.append(replace(record, image_id=new_id, patient_id=record.patient_id if has_patient else new_id))
    return _sort(kept)


def pseudonymise_patient(record: Record, key: bytes) -> Record:
    """Replace the patient id of a listing by a pseudonym, if the listing names a patient."""
    if record.patient_id in ("", record.image_id):
        return record
    return replace(record, patient_id=pseudonym(record.patient_id, key))


def _sort(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record.dataset, record.image_id, record.image_uri))


def _open(path: str, columns: ListingColumns, classes: Sequence[str]) -> _Listing:
    content = storage.read_bytes(path)
    names = column_names(content, path)
    roles, masks = find_columns(columns, names, path, classes)
    cells = read_columns(content, path, [*roles.values(), *(column for _, column in masks)])
    if not cells[roles["image"]]:
        raise InputError(f"{path}: no rows, expected one for each image: fill it in")
    folder = storage.parent_of(path)
    named = {roles["image"], *(column for _, column in masks)}
    uris = {column: [_uri(folder, cell) for cell in cells[column]] for column in named}
    stored = stored_names(uri for column in uris.values() for uri in column)
    uris = {column: [stored.get(uri, uri) for uri in listed] for column, listed in uris.items()}
    return _Listing(
        path,
        {role: [normal_form(cell) for cell in cells[column]] for role, column in roles.items()},
        [(kind, uris[column]) for kind, column in masks],
        uris[roles["image"]],
    )


def _uri(folder: str, cell: str) -> str:
    """Convert a cell to a URI; relative paths start at the listing's folder; `` for an empty cell."""
    if not cell or "://" in cell or cell.startswith("/"):
        return cell
    scheme, separator, parent = folder.rpartition("://")
    return scheme + separator + posixpath.normpath(f"{parent}/{quote(cell) if separator else cell}")


def image_ids(uris: Iterable[str]) -> dict[str, str]:
    """Build the id of each image from its path below the common folder of all; equal ids get a digest."""
    components = {uri: uri.split("/") for uri in dict.fromkeys(uris) if uri}
    if not components:
        return {}
    low, high = (extreme(names[:-1] for names in components.values()) for extreme in (min, max))
    pairs = enumerate(zip(low, high, strict=False))
    common = next((i for i, (first, last) in pairs if first != last), min(len(low), len(high)))
    paths = {uri: "/".join(names[common:]) for uri, names in components.items()}
    paths = {uri: unquote(path) if "://" in uri else path for uri, path in paths.items()}
    ids = {uri: image_id(stem(path)) for uri, path in paths.items()}
    counts = Counter(ids.values())
    return {uri: own if counts[own] == 1 else f"{own}-{short_digest(paths[uri])}" for uri, own in ids.items()}


def _record(listing: _Listing, row: int, row_id: str, dataset: str, first_row: int) -> Record:
    """Build the record of a row; `first_row` is the first one with the same image."""
    masks = [(kind, cells[row]) for kind, cells in listing.masks if cells[row]]
    note = _find_problem(listing, row, first_row)
    patient, unnamed = listing.cell("patient_id", row), unnamed_patient(row_id, listing.uris[row])
    record = Record(
        image_id=row_id,
        dataset=dataset,
        image_uri=listing.uris[row],
        mask_uris=tuple(uri for _, uri in masks),
        mask_classes=tuple(kind for kind, _ in masks),
        patient_id=unnamed if patient.lower() in _MISSING else patient or unnamed,
        finding=listing.cell("finding", row) or None,
        age_group=parse_age_group(listing.cell("age", row)),
        sex=parse_sex(listing.cell("sex", row)),
        view=listing.cell("view", row).upper() or None,
    )
    return reject(record, note) if note else record


def _find_problem(listing: _Listing, row: int, first_row: int) -> Note | None:
    """Return why a row cannot be used, or None."""
    display_name = f"row {row + 1} of {storage.name_of(listing.path)}"
    if not listing.uris[row]:
        return Note("no_image", f"{display_name} names no image: fill in the cell, or remove the row")
    if first_row != row:
        message = f"{display_name} names the same image as row {first_row + 1}: remove one of them"
        return Note("listed_twice", message)
    try:
        refuse_view(classify_listed_view(listing.cell("view", row)), display_name)
    except ImageError as error:
        return Note(error.code, error.message)
    has_lung = {bool(cells[row]) for kind, cells in listing.masks if kind == "lung"}
    kinds = [kind for kind, cells in listing.masks if cells[row]]
    return ONE_SIDED_MASK if len(has_lung) > 1 or has_one_side(kinds) else None
