"""What an inference is asked to predict: a folder, a listing, a manifest, prepared data or one picture, as items."""

import fnmatch
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from lungseg import storage
from lungseg.config import InferSettings, PreprocessSettings
from lungseg.data import datasets, manifest, sources
from lungseg.data.sources import names, tables
from lungseg.engine.items import Item, Stat, prepared_item, with_stats
from lungseg.errors import InputError
from lungseg.schema import MANIFEST, Record

_LISTINGS = (".csv", ".tsv", ".parquet")
_NAMES = {"duplicate_id", "listed_twice", "no_image", "one_sided_mask"}  # codes of what stands in the archive's names
_READERS = 16  # threads that ask a bucket what its objects are like


def list_items(settings: InferSettings, preprocess: PreprocessSettings, key: bytes | None = None) -> list[Item]:
    """List what there is to predict, each with what its files are like now.

    With a key a listing's patients get pseudonyms.

    Raises:
        InputError: there is nothing, or prepared data that another preparation made.

    """
    archive = storage.resolve(settings.archive)
    if not storage.exists(archive):
        raise InputError(f"{archive}: no such folder or file: pass images, a listing, or prepared data")
    items = _items(archive, settings, preprocess, key)
    if settings.pattern:
        items = [item for item in items if fnmatch.fnmatch(_below(archive, item), settings.pattern)]
        if not items:
            raise InputError(f"{archive}: no path below it fits --pattern {settings.pattern}: check it, * is anything")
    return with_stats(items, stats_of({uri for item in items for uri in item.files()}))


def _items(archive: str, settings: InferSettings, preprocess: PreprocessSettings, key: bytes | None) -> list[Item]:
    if storage.stat_if_there(archive) is not None:
        return [Item(record) for record in manifest.refuse_same_ids(_from_file(archive, settings, key))]
    prepared = datasets.datasets_in(archive)
    if not prepared:
        return [Item(record) for record in manifest.refuse_same_ids(sources.discover(archive))]
    found = [datasets.open_dataset(folder) for folder in prepared]
    for data in found:
        if data.preprocess != preprocess:
            raise InputError(
                f"{data.folder} was prepared with {data.preprocess!r}, the model expects {preprocess!r}: "
                "prepare it so, or pass the folder of images"
            )
    return [prepared_item(data.folder, row) for data in found for row in data.index.to_pylist()]


def _from_file(path: str, settings: InferSettings, key: bytes | None) -> list[Record]:
    """List the records of a listing, of a manifest that prepare wrote, or of one picture."""
    if not path.lower().endswith(_LISTINGS):
        folder = storage.name_of(storage.parent_of(path))
        own = names.image_id(names.stem(storage.name_of(path)))
        return [Record(own, names.dataset_name(folder), path, patient_id=own)]
    if path.lower().endswith(".parquet"):
        content = storage.read_bytes(path)
        if set(MANIFEST.names) <= set(tables.column_names(content, path)):
            return [_again(row) for row in storage.read_table(path, content).to_pylist()]
    listed = sources.from_listing(path, settings.columns)
    return [sources.hide_patient(record, key) for record in listed] if key else listed


def _again(row: dict[str, Any]) -> Record:
    """Make a record of a manifest's row, to be judged anew, but for what names nothing that could be judged."""
    record = Record.from_dict(row)
    if _NAMES & set(manifest.codes_of(record.reason)):
        return record
    fresh = Record(record.image_id, record.dataset, record.image_uri)
    judged = ("sha256", "phash", "height", "width", "mask_area", "status", "reason", "flags")
    return replace(record, **{name: getattr(fresh, name) for name in judged})


def _below(archive: str, item: Item) -> str:
    return item.record.image_uri.removeprefix(archive).lstrip("/")


def stats_of(uris: set[str]) -> dict[str, Stat]:
    """Ask what files are like: size in bytes and time of change; None: not there, the row will say so."""
    ordered: Sequence[str] = sorted(uris)
    with ThreadPoolExecutor(_READERS if any("://" in uri for uri in ordered) else 1) as pool:
        return dict(zip(ordered, pool.map(storage.stat_if_there, ordered), strict=True))
