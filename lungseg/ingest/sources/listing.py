"""Read a listing, a CSV or Parquet file with a row for each X-ray; every row becomes a record."""

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from lungseg import storage
from lungseg.config import ListingColumns
from lungseg.config.class_names import ONE_CLASS
from lungseg.errors import ImageError, InputError
from lungseg.imaging.dicom.pseudonym import pseudonym
from lungseg.imaging.dicom.tags import refuse_view
from lungseg.ingest.file_names import dataset_name, dataset_names, normal_form, short_digest, unnamed_patient
from lungseg.ingest.reason_codes import Note, reject
from lungseg.ingest.sources.demographics import parse_age_group, parse_sex
from lungseg.ingest.sources.image_ids import ImageIds, common_folder, decoded
from lungseg.ingest.sources.listing_columns import find_columns
from lungseg.ingest.sources.mask_matching import ONE_SIDED_MASK, has_one_side
from lungseg.ingest.sources.stored_names import stored_names
from lungseg.ingest.sources.text_tables import Content, column_names, open_content, read_pieces
from lungseg.ingest.views import classify_listed_view
from lungseg.schema import Record

# What programs write for a missing patient id; taken as an id, it would make all these images one patient's.
_MISSING = frozenset({"nan", "na", "n/a", "<na>", "none", "null", "unknown", "-"})


@dataclass(frozen=True)
class _Piece:
    """Successive rows: cells by role, without roles that have no column; mask uris by class; image uris.

    first: the number of the first row. name: of the listing, for messages.
    """

    name: str
    first: int
    cells: dict[str, list[str]]
    masks: list[tuple[str, list[str]]]
    uris: list[str]

    def cell(self, role: str, row: int) -> str:
        return self.cells[role][row] if role in self.cells else ""


class Listing:
    """The X-rays of a CSV or Parquet file: one record a row, in the order of the rows.

    Each iteration reads the file again. Of a Parquet file, a piece of the rows is in memory at a time; of the others it
    takes about 50 bytes a row, and the paths that several rows name. Messages count rows from 1 below the header. No
    image is opened.
    """

    def __init__(
        self,
        path: str,
        columns: ListingColumns,
        dataset: str = "",
        classes: Sequence[str] = ONE_CLASS,
        content: "Content | None" = None,
    ) -> None:
        """Relative paths start at the folder of the listing.

        dataset: names rows without a dataset of their own; if it is empty, the name of the listing does. classes: as
        in `find_columns`. content: of the file, where it was opened before.

        Raises:
            InputError: the file is missing, unreadable or without rows, or a named column does not exist.

        """
        self._path = storage.resolve(path)
        self._stat = storage.stat(self._path)
        self._content = open_content(self._path) if content is None else content
        self._default = dataset or dataset_name(storage.name_of(self._path).rpartition(".")[0])
        names = column_names(self._content, self._path)
        self._roles, self._masks = find_columns(columns, names, self._path, classes)
        self._stored: dict[str, str] = {}
        self._titles: dict[str, str] = {}
        self._ids = self._image_ids()

    @property
    def has_masks(self) -> bool:
        """Whether the listing has a column of masks."""
        return bool(self._masks)

    def __iter__(self) -> Iterator[Record]:
        """Yield the records.

        Raises:
            InputError: the file is damaged, or was changed since it was opened.

        """
        if storage.try_stat(self._path) != self._stat:
            raise InputError(f"{self._path} was changed while it was read: run the same command again")
        first_rows: dict[tuple[str, str], int] = {}
        roles = [*self._roles.values(), *(column for _, column in self._masks)]
        first = 0
        for cells in read_pieces(self._content, self._path, roles):
            piece = self._piece(cells, first)
            first += len(piece.uris)
            yield from self._records(piece, first_rows)

    def _image_ids(self) -> ImageIds:
        """Read all paths, and the titles of the datasets.

        Raises:
            InputError: there are no rows.

        """
        image, title = self._roles["image"], self._roles.get("dataset")
        named = {image, *(column for _, column in self._masks)}
        titles: set[str] = set()
        folder, rows, listed_folders = None, 0, dict[str, dict[str, str]]()
        for cells in read_pieces(self._content, self._path, [*named, *([title] if title else [])]):
            rows += len(cells[image])
            uris = (uri for column in named for uri in self._uris(cells[column]))
            self._stored |= stored_names(uris, listed_folders)
            folder = common_folder(filter(None, self._stored_uris(cells[image])), folder)
            titles.update(normal_form(cell).lower() for cell in (cells[title] if title else ()))
        if not rows:
            raise InputError(f"{self._path}: no rows, expected one for each image: fill it in")
        self._titles = dataset_names(sorted(titles - {""}), "")
        pieces = read_pieces(self._content, self._path, [image])
        return ImageIds.of(folder or "", (self._stored_uris(cells[image]) for cells in pieces))

    def _piece(self, cells: Mapping[str, list[str]], first: int) -> _Piece:
        return _Piece(
            storage.name_of(self._path),
            first,
            {role: [normal_form(cell) for cell in cells[column]] for role, column in self._roles.items()},
            [(kind, self._stored_uris(cells[column])) for kind, column in self._masks],
            self._stored_uris(cells[self._roles["image"]]),
        )

    def _stored_uris(self, cells: Sequence[str]) -> list[str]:
        return [self._stored.get(uri, uri) for uri in self._uris(cells)]

    def _uris(self, cells: Sequence[str]) -> list[str]:
        folder = storage.parent_of(self._path)
        return [cell if cell.startswith("/") else _uri(folder, cell) for cell in cells]

    def _records(self, piece: _Piece, first_rows: dict[tuple[str, str], int]) -> Iterator[Record]:
        """Yield the records of a piece. first_rows: of each image that several rows name; grows."""
        ids, repeated = self._ids.names(piece.uris), self._ids.repeated(piece.uris)
        for row, uri in enumerate(piece.uris):
            number = piece.first + row
            name = self._titles.get(piece.cell("dataset", row).lower(), self._default)
            first_row = first_rows.setdefault((name, decoded(uri)), number) if repeated[row] else number
            row_id = ids[row] or f"row_{number + 1:07d}_without_image"
            yield _record(piece, row, row_id, name, first_row)


def read_listing(
    path: str, columns: ListingColumns, dataset: str = "", classes: Sequence[str] = ONE_CLASS
) -> list[Record]:
    """Return the records of a listing, sorted by dataset and id. Arguments and errors: as of `Listing`."""
    return _sort(Listing(path, columns, dataset, classes))


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


def _uri(folder: str, cell: str) -> str:
    """Convert a cell to a URI; relative paths start at the listing's folder; `` for an empty cell."""
    if not cell or "://" in cell or cell.startswith("/"):
        return cell
    scheme, separator, parent = folder.rpartition("://")
    return scheme + separator + posixpath.normpath(f"{parent}/{quote(cell) if separator else cell}")


def _record(piece: _Piece, row: int, row_id: str, dataset: str, first_row: int) -> Record:
    """Build the record of a row of a piece; `first_row` is the first one of the listing with the same image."""
    masks = [(kind, cells[row]) for kind, cells in piece.masks if cells[row]]
    note = _find_problem(piece, row, first_row)
    patient, unnamed = piece.cell("patient_id", row), unnamed_patient(row_id, piece.uris[row])
    record = Record(
        image_id=row_id,
        dataset=dataset,
        image_uri=piece.uris[row],
        mask_uris=tuple(uri for _, uri in masks),
        mask_classes=tuple(kind for kind, _ in masks),
        patient_id=unnamed if patient.lower() in _MISSING else patient or unnamed,
        finding=piece.cell("finding", row) or None,
        age_group=parse_age_group(piece.cell("age", row)),
        sex=parse_sex(piece.cell("sex", row)),
        view=piece.cell("view", row).upper() or None,
    )
    return reject(record, note) if note else record


def _find_problem(piece: _Piece, row: int, first_row: int) -> Note | None:
    """Return why a row cannot be used, or None."""
    number = piece.first + row
    display_name = f"row {number + 1} of {piece.name}"
    if not piece.uris[row]:
        return Note("no_image", f"{display_name} names no image: fill in the cell, or remove the row")
    if first_row != number:
        message = f"{display_name} names the same image as row {first_row + 1}: remove one of them"
        return Note("listed_twice", message)
    try:
        refuse_view(classify_listed_view(piece.cell("view", row)), display_name)
    except ImageError as error:
        return Note(error.code, error.message)
    has_lung = {bool(cells[row]) for kind, cells in piece.masks if kind == "lung"}
    kinds = [kind for kind, cells in piece.masks if cells[row]]
    return ONE_SIDED_MASK if len(has_lung) > 1 or has_one_side(kinds) else None
