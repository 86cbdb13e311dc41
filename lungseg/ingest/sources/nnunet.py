"""nnU-Net and Medical Segmentation Decathlon: `imagesTr`, `labelsTr`, `imagesTs`, `labelsTs` and `dataset.json`.

Source of the names: the dataset format of nnU-Net versions 1 and 2 (Isensee et al., Nature Methods 2021) and of the
Decathlon (Antonelli et al., Nature Communications 2022).
"""

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lungseg import storage
from lungseg.config.class_names import ONE_CLASS
from lungseg.ingest.file_names import dataset_names, image_id, is_image, relative_path, stem
from lungseg.ingest.reason_codes import Note, reject
from lungseg.ingest.sources.mask_matching import DatasetFiles, match_and_warn, other_mask
from lungseg.ingest.sources.nnunet_json import Label, read_folds, read_labels
from lungseg.schema import Record

logger = logging.getLogger(__name__)

_FOLDER = re.compile(r"(?P<kind>images|labels)(?P<subset>tr|ts)")
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
# Formats of nnU-Net that lungseg does not read.
_VOLUME = re.compile(r"\.(nii|nii\.gz|mha|mhd|nrrd|npz|npy|b2nd)$", re.IGNORECASE)

Files = list[tuple[str, str]]
"""(name without suffix, uri) of the files in a folder."""


@dataclass
class _Dataset:
    """The files of one dataset by folder, `images` or `labels` and `tr` or `ts`; uris of its JSON files by name."""

    files: defaultdict[tuple[str, str], Files] = field(default_factory=lambda: defaultdict(list))
    json: dict[str, str] = field(default_factory=dict)


def recognise(folder: str, files: Sequence[str], classes: Sequence[str] = ONE_CLASS) -> list[Record]:
    """Take the datasets with a folder `imagesTr`; those of `imagesTs` become a dataset of their own, NAME_test.

    `labels` of dataset.json name the grey values of the lungs; if it names no lungs, the label files are rejected.
    Without dataset.json, the grey values of a mask decide. The folds of splits_final.json are kept. Volumes and further
    channels of a case are rejected.

    Raises:
        InputError: there are images and masks and no mask matches, or dataset.json or splits_final.json is damaged.

    """
    datasets = {root: group for root, group in _group(folder, files).items() if group.files["images", "tr"]}
    names = dataset_names(datasets, folder)
    records: list[Record] = []
    for root, group in datasets.items():
        labels = read_labels(group.json["dataset.json"], classes) if "dataset.json" in group.json else None
        folds = read_folds(group.json["splits_final.json"]) if "splits_final.json" in group.json else {}
        path = storage.join(folder, root) if root else folder
        training = _with_folds(_match(group, "tr", names[root], path), folds, path)
        test = _match(group, "ts", f"{names[root]}_test", path)
        matched = [*training, *test]
        ignored = [record for record in matched if record.usable and record.mask_uris] if labels == [] else []
        records += [_with_labels(record, labels) for record in matched]
        records += [
            other_mask(
                folder, record.mask_uris[0], record.dataset, "no label in its dataset.json is named lung: correct it"
            )
            for record in ignored
        ]
    return records


def _group(folder: str, files: Sequence[str]) -> dict[str, _Dataset]:
    datasets: defaultdict[str, _Dataset] = defaultdict(_Dataset)
    for uri in files:
        *folders, file_name = relative_path(folder, uri).split("/")
        if file_name in ("dataset.json", "splits_final.json"):
            datasets["/".join(folders)].json[file_name] = uri
        match = _FOLDER.fullmatch(folders[-1].lower()) if folders else None
        if match and (is_image(file_name) or _VOLUME.search(file_name)):
            name = stem(_VOLUME.sub("", file_name))
            datasets["/".join(folders[:-1])].files[match["kind"], match["subset"]].append((name, uri))
    return dict(datasets)


def _match(group: _Dataset, subset: str, dataset: str, folder: str) -> list[Record]:
    """Build the records of imagesTr or imagesTs."""
    labels = group.files["labels", subset]
    cases = _cases(group.files["images", subset], {name for name, _ in labels})
    files = DatasetFiles()
    for case, channel, uri in cases:
        if channel == 0:
            files.add_image(case, uri)
    for name, uri in labels:
        files.add_mask(name, uri)
    extra = [_extra(f"{case}_{channel:04d}", uri, dataset) for case, channel, uri in cases if channel]
    return [*(_without_volumes(record) for record in match_and_warn(files, dataset, folder)), *extra]


def _cases(images: Files, labelled: set[str]) -> list[tuple[str, int, str]]:
    """Return case, channel and uri of each image. Names of the Decathlon have no channel."""
    names = {name for name, _ in images}
    cases = []
    for name, uri in images:
        match = None if name in labelled else _CHANNEL.fullmatch(name)
        is_channel = match is not None and (int(match["channel"]) == 0 or f"{match['case']}_0000" in names)
        cases.append((match["case"], int(match["channel"]), uri) if match and is_channel else (name, 0, uri))
    return cases


def _without_volumes(record: Record) -> Record:
    """Reject a record whose image or label is a volume."""
    volume = next((uri for uri in (record.image_uri, *record.mask_uris) if _VOLUME.search(uri)), None)
    if volume is None or not record.usable:
        return record
    name = storage.name_of(volume)
    message = f"{name} is in a format for volumes that lungseg does not read: save it as PNG or TIFF"
    return reject(replace(record, mask_uris=(), mask_classes=()), Note("undecodable", message))


def _extra(name: str, uri: str, dataset: str) -> Record:
    channel_id = image_id(name)
    message = f"{storage.name_of(uri)} is another channel of its case, and only channel 0000 is read: remove it"
    return reject(Record(channel_id, dataset, uri, patient_id=channel_id), Note("extra_channel", message))


def _with_folds(records: list[Record], folds: dict[str, int], folder: str) -> list[Record]:
    """Set the folds of usable images; those that splits_final.json does not name get one as without the file."""
    if not folds:
        return records
    by_id = {image_id(case): fold for case, fold in folds.items()}
    given = [replace(record, fold=by_id.get(record.image_id)) if record.usable else record for record in records]
    missing = [record.image_id for record in given if record.usable and record.fold is None]
    if missing:
        logger.warning("%s: splits_final.json does not name %d images (first: %s)", folder, len(missing), missing[0])
    return given


def _with_labels(record: Record, labels: list[Label] | None) -> Record:
    """Use a label file for each class that dataset.json names, with its grey values."""
    if labels is None or not record.mask_uris:
        return record
    if not labels:
        return replace(record, mask_uris=(), mask_classes=(), flags=(*record.flags, "no_mask"))
    uri = record.mask_uris[0]
    return replace(
        record,
        mask_uris=(uri,) * len(labels),
        mask_classes=tuple(label.kind for label in labels),
        mask_values=tuple(label.values for label in labels),
    )
