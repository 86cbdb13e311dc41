"""List the items to predict from a folder, a listing, a manifest, prepared data or a single image."""

import fnmatch
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from lungseg import storage
from lungseg.config import InferSettings, ListingColumns, PreprocessSettings
from lungseg.config.class_names import ONE_CLASS
from lungseg.dataset import catalog
from lungseg.errors import InputError, SettingsError
from lungseg.imaging.codecs import SUFFIXES
from lungseg.inference.image_inputs import file_record
from lungseg.inference.items import Item, Stat, prepared_item, with_stats
from lungseg.ingest import file_names, record_checks, sources
from lungseg.ingest.sources import mask_matching, text_tables
from lungseg.metrics.segmentation import ORIGINAL_REFERENCE, PREPARED_REFERENCE
from lungseg.plurals import counted
from lungseg.schema import MANIFEST, Record
from lungseg.storage.table_formats import MANIFEST_TABLE

logger = logging.getLogger(__name__)

_LISTINGS = (".csv", ".tsv", ".parquet")
_FINAL_CODES = {
    "duplicate_id",
    "listed_twice",
    "no_image",
    "one_sided_mask",
    "other_mask",
    "unmatched_mask",
}  # found without reading the files
_READERS = 16  # threads that stat objects in a bucket
_PIECE = 1 << 14  # records of a listing


def list_items(settings: InferSettings, preprocess: PreprocessSettings, key: bytes | None = None) -> Iterator[Item]:
    """Yield the items to predict, with the present size and time of change of their files; the order never changes.

    Prepared data and Parquet listings are read piece by piece, so that millions of images fit into memory.

    key: for pseudonyms of the patients in a listing.

    Raises:
        InputError: there is no image, or the archive was prepared with other settings than the model's.
        SettingsError: column names are set, but the archive is not a listing.

    """
    archive = storage.resolve(settings.archive)
    if not storage.exists(archive):
        raise InputError(f"{archive}: no such folder or file: pass images, a listing, or prepared data")
    if settings.columns != ListingColumns() and not archive.lower().endswith(_LISTINGS):
        raise SettingsError(f"--columns.* needs a listing, but {archive} is none: pass a CSV, TSV or Parquet file")
    is_empty = True
    for item in _items(archive, settings, preprocess, key):
        is_empty = False
        yield item
    if is_empty and settings.pattern:
        raise InputError(
            f"{archive}: no path in it matches --pattern {settings.pattern}: check the pattern, * matches anything"
        )
    if is_empty:
        raise InputError(f"{archive}: no rows, expected one row for each image")


def describe_reference(items: Sequence[Item]) -> str:
    """Say which masks the predictions of these items are compared with."""
    is_prepared = any(item.row is not None for item in items)
    return PREPARED_REFERENCE if is_prepared else ORIGINAL_REFERENCE


def _items(archive: str, settings: InferSettings, preprocess: PreprocessSettings, key: bytes | None) -> Iterator[Item]:
    if storage.try_stat(archive) is not None:
        yield from _file_items(archive, settings, preprocess, key)
    elif prepared := catalog.list_datasets(archive):
        yield from _prepared_items(archive, prepared, settings, preprocess)
    else:
        records = _select(sources.discover(archive, classes=preprocess.classes), archive, settings.pattern)
        yield from _record_items(records, preprocess.classes, archive)


def _file_items(
    path: str, settings: InferSettings, preprocess: PreprocessSettings, key: bytes | None
) -> Iterator[Item]:
    """Yield the items of a listing, of a manifest of lungseg prepare, or of a single image."""
    folder, classes = storage.parent_of(path), preprocess.classes
    if not path.lower().endswith(_LISTINGS):
        yield from _record_items(_select([file_record(path)], folder, settings.pattern), classes)
        return
    content = text_tables.open_content(path)
    if path.lower().endswith(".parquet") and set(MANIFEST.names) <= set(text_tables.column_names(content, path)):
        rows = storage.read_table(path, expected=MANIFEST_TABLE).select(MANIFEST.names).to_pylist()
        yield from _record_items(_select([_unchecked(row) for row in rows], folder, settings.pattern), classes)
        return
    listing = sources.Listing(path, settings.columns, classes=classes, content=content)
    yield from _listed_items(_ListedRecords(listing, folder, settings.pattern, key, classes), listing.has_masks)


def _record_items(records: list[Record], classes: Sequence[str], folder: str = "") -> Iterator[Item]:
    """Yield the items of records that are all in memory. folder: that contains them, if it was listed."""
    if tuple(classes) != ONE_CLASS:
        records = [_predictable(record) for record in records]
    unique = record_checks.reject_duplicate_ids(records)
    stats = stat_files({uri for record in unique for uri in Item(record).files()}, folder)
    for record in record_checks.flag_missing_masks(unique, classes):
        yield from with_stats([Item(record)], stats)


@dataclass(frozen=True)
class _ListedRecords:
    """The selected records of a listing, read again at each iteration. key: for pseudonyms of the patients."""

    listing: sources.Listing
    folder: str
    pattern: str
    key: bytes | None
    classes: tuple[str, ...]

    def __iter__(self) -> Iterator[Record]:
        several = self.classes != ONE_CLASS
        for record in self.listing:
            if _matches(record, self.folder, self.pattern):
                own = sources.pseudonymise_patient(record, self.key) if self.key else record
                yield _predictable(own) if several else own


def _listed_items(records: _ListedRecords, has_masks: bool) -> Iterator[Item]:
    """Yield the items of a listing in the order of its rows, so that tens of millions fit into memory."""
    # Without a column of masks, none is missing: the listing is not read once more to find out.
    checked = record_checks.flag_missing_masks(records, records.classes) if has_masks else iter(records)
    while piece := list(islice(checked, _PIECE)):
        stats = stat_files({uri for record in piece for uri in Item(record).files()})
        for record in piece:
            yield from with_stats([Item(record)], stats)


def _prepared_items(
    archive: str, prepared: Sequence[str], settings: InferSettings, preprocess: PreprocessSettings
) -> Iterator[Item]:
    _require_only_prepared(archive, prepared)
    opened = [catalog.describe_dataset(folder) for folder in prepared]
    for folder in catalog.list_unfinished(archive):
        logger.warning("%s is incomplete and is skipped: run lungseg prepare again", folder)
    for data in opened:
        classes = {"classes": preprocess.classes}  # may differ: what is annotated is compared
        differences = data.preprocess.model_copy(update=classes).differences(preprocess)
        if differences:
            raise InputError(
                f"{data.folder} was prepared with other settings than the model's training data ({differences}): "
                "prepare it with the same settings, or pass the folder of images"
            )
    stats = stat_files({path for data in opened for path in data.tars()}, archive)
    for data in opened:
        for rows in catalog.read_index(data):
            for row in rows.to_pylist():
                item = prepared_item(data.folder, row, classes=data.preprocess.classes)
                if _matches(item.record, archive, settings.pattern):
                    yield from with_stats([item], stats)


def count_skipped(archive: str) -> int:
    """Count the datasets of prepared data that are skipped because they are not finished."""
    if storage.try_stat(archive) is not None or not catalog.list_datasets(archive):
        return 0
    return len(catalog.list_unfinished(archive))


def _require_only_prepared(archive: str, prepared: Sequence[str]) -> None:
    """Check that the folder has no images beside the prepared data: they would be skipped silently.

    Raises:
        InputError: it has.

    """
    inside = tuple(f"{folder}/" for folder in prepared)
    others = [path for path in storage.list_files(archive, SUFFIXES) if not path.startswith(inside)]
    if others:
        raise InputError(
            f"{archive} contains prepared data ({prepared[0]}) and {counted(len(others), 'image')} (first: "
            f"{others[0]}): pass "
            "the folder of one of them"
        )


def _unchecked(row: dict[str, Any]) -> Record:
    """Return the record of a manifest row without the results of its checks, which run again during inference."""
    record = Record.from_dict(row)
    if _FINAL_CODES & set(record.codes):
        return record
    fresh = Record(record.image_id, record.dataset, record.image_uri)
    results = (
        *("pixel_digest", "phash", "height", "width", "orientation"),
        *("mask_area", "status", "codes", "message", "flags"),
    )
    return replace(record, **{name: getattr(fresh, name) for name in results})


def _predictable(record: Record) -> Record:
    """Return a record that is usable although one lung has no mask: `open_item` then compares the other classes."""
    if record.codes == ("one_sided_mask",) and mask_matching.has_one_side(record.mask_classes):
        return replace(record, status="ok", codes=(), message="")
    return record


def _select(records: list[Record], folder: str, pattern: str) -> list[Record]:
    """Select by path. This comes before the check for duplicate ids, so that other files take no id."""
    return [record for record in records if _matches(record, folder, pattern)]


def _matches(record: Record, folder: str, pattern: str) -> bool:
    path = file_names.relative_path(folder, record.image_uri)
    return not pattern or fnmatch.fnmatch(path, file_names.normal_form(pattern))


def stat_files(uris: set[str], folder: str = "") -> dict[str, Stat]:
    """Return size and time of change of files; None for a missing file.

    folder: where most of the files are. In a bucket, one listing of it replaces a request for each file.
    """
    ordered: Sequence[str] = sorted(uris)
    if not any("://" in uri for uri in ordered):
        return {uri: storage.try_stat(uri) for uri in ordered}
    listed: dict[str, tuple[int, int]] = storage.list_stats(folder) if "://" in folder else {}
    others = [uri for uri in ordered if uri not in listed]
    with ThreadPoolExecutor(_READERS) as pool:
        stats = dict(zip(others, pool.map(storage.try_stat, others), strict=True))
    return {uri: listed.get(uri) or stats[uri] for uri in ordered}
