"""What an inference is asked to predict: a folder, a listing, a manifest, prepared data or one picture, as items."""

import fnmatch
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from lungseg import storage
from lungseg.config import InferSettings, ListingColumns, PreprocessSettings
from lungseg.dataset import catalog
from lungseg.errors import InputError, SettingsError
from lungseg.imaging.codecs import SUFFIXES
from lungseg.inference.items import Item, Stat, prepared_item, with_stats
from lungseg.ingest import file_names, record_checks, sources
from lungseg.ingest.sources import text_tables
from lungseg.schema import MANIFEST, Record

logger = logging.getLogger(__name__)

_LISTINGS = (".csv", ".tsv", ".parquet")
_NAMES = {"duplicate_id", "listed_twice", "no_image", "one_sided_mask"}  # codes of what stands in the archive's names
_READERS = 16  # threads that ask a bucket what its objects are like


def list_items(settings: InferSettings, preprocess: PreprocessSettings, key: bytes | None = None) -> list[Item]:
    """List what there is to predict, each with what its files are like now.

    With a key a listing's patients get pseudonyms.

    Raises:
        InputError: there is nothing, or prepared data that another preparation made.
        SettingsError: columns are named, and there is no listing.

    """
    archive = storage.resolve(settings.archive)
    if not storage.exists(archive):
        raise InputError(f"{archive}: no such folder or file: pass images, a listing, or prepared data")
    if settings.columns != ListingColumns() and not archive.lower().endswith(_LISTINGS):
        raise SettingsError(f"--columns.* name columns of a listing, {archive} is none: pass a CSV or Parquet file")
    items = _items(archive, settings, preprocess, key)
    if not items and settings.pattern:
        raise InputError(f"{archive}: no path below it fits --pattern {settings.pattern}: check it, * is anything")
    if not items:
        raise InputError(f"{archive}: no row in it, expected one for each image: fill it in")
    return with_stats(items, stat_files({uri for item in items for uri in item.files()}, archive))


def _items(archive: str, settings: InferSettings, preprocess: PreprocessSettings, key: bytes | None) -> list[Item]:
    if storage.try_stat(archive) is not None:
        listed = _fitting(_from_file(archive, settings, key), storage.parent_of(archive), settings.pattern)
        return [Item(record) for record in record_checks.reject_duplicate_ids(listed)]
    prepared = catalog.list_datasets(archive)
    if not prepared:
        found = _fitting(sources.discover(archive), archive, settings.pattern)
        return [Item(record) for record in record_checks.reject_duplicate_ids(found)]
    _require_nothing_else(archive, prepared)
    opened = [catalog.open_dataset(folder) for folder in prepared]
    for folder in catalog.list_unfinished(archive):
        logger.warning("%s is not finished and is left out: run jobs/prepare.py again", folder)
    for data in opened:
        unlike = data.preprocess.differences(preprocess)
        if unlike:
            raise InputError(
                f"{data.folder} was prepared unlike what the model learnt from ({unlike}): prepare it so, or pass the "
                "folder of images"
            )
    items = [prepared_item(data.folder, row) for data in opened for row in data.index.to_pylist()]
    return [item for item in items if _fits(item.record, archive, settings.pattern)]


def _require_nothing_else(archive: str, prepared: Sequence[str]) -> None:
    """Make sure that prepared data is not beside images, which nobody would miss.

    Raises:
        InputError: it is.

    """
    inside = tuple(f"{folder}/" for folder in prepared)
    others = [path for path in storage.list_files(archive, SUFFIXES) if not path.startswith(inside)]
    if others:
        raise InputError(
            f"{archive} holds prepared data ({prepared[0]}) and {len(others)} images (first: {others[0]}): pass the "
            "folder of one of them"
        )


def _from_file(path: str, settings: InferSettings, key: bytes | None) -> list[Record]:
    """List the records of a listing, of a manifest that prepare wrote, or of one picture."""
    if not path.lower().endswith(_LISTINGS):
        folder = storage.name_of(storage.parent_of(path))
        own = file_names.image_id(file_names.stem(storage.name_of(path)))
        return [Record(own, file_names.dataset_name(folder), path, patient_id=own)]
    if path.lower().endswith(".parquet"):
        content = storage.read_bytes(path)
        if set(MANIFEST.names) <= set(text_tables.column_names(content, path)):
            return [_again(row) for row in storage.read_table(path, content).select(MANIFEST.names).to_pylist()]
    listed = sources.read_listing(path, settings.columns)
    return [sources.pseudonymise_patient(record, key) for record in listed] if key else listed


def _again(row: dict[str, Any]) -> Record:
    """Make a record of a manifest's row, to be judged anew, but for what names nothing that could be judged."""
    record = Record.from_dict(row)
    if _NAMES & set(record.codes):
        return record
    fresh = Record(record.image_id, record.dataset, record.image_uri)
    judged = ("pixel_digest", "phash", "height", "width", "mask_area", "status", "codes", "message", "flags")
    return replace(record, **{name: getattr(fresh, name) for name in judged})


def _fitting(records: list[Record], folder: str, pattern: str) -> list[Record]:
    """Choose by path, before ids are compared: what is not asked for takes no id."""
    return [record for record in records if _fits(record, folder, pattern)]


def _fits(record: Record, folder: str, pattern: str) -> bool:
    return not pattern or fnmatch.fnmatch(file_names.relative_path(folder, record.image_uri), pattern)


def stat_files(uris: set[str], folder: str = "") -> dict[str, Stat]:
    """Ask what files are like: size in bytes and time of change; None: not there, the row will say so.

    In a bucket the listing of `folder` knows it of most: a million requests less.
    """
    ordered: Sequence[str] = sorted(uris)
    if not any("://" in uri for uri in ordered):
        return {uri: storage.try_stat(uri) for uri in ordered}
    listed: dict[str, tuple[int, int]] = storage.list_stats(folder) if "://" in folder else {}
    left = [uri for uri in ordered if uri not in listed]
    with ThreadPoolExecutor(_READERS) as pool:
        asked = dict(zip(left, pool.map(storage.try_stat, left), strict=True))
    return {uri: listed.get(uri) or asked[uri] for uri in ordered}
