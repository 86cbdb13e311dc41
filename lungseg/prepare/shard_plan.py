"""Assign inputs to tars before any is written, and keep the assignment when the archive grows."""

import json
import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from lungseg import storage
from lungseg.config import OddMasks, PreprocessSettings
from lungseg.config.shared import format_value
from lungseg.errors import InputError
from lungseg.ingest.reason_codes import is_unmatched_mask
from lungseg.schema import SCHEMA, Record, table
from lungseg.storage.json_files import parse_json
from lungseg.storage.table_formats import TableFormat

logger = logging.getLogger(__name__)

_PLAN = pa.schema(
    [("shard", pa.string()), ("image_uri", pa.string()), ("image_id", pa.string())],
    metadata={"lungseg.schema": str(SCHEMA).encode()},
)
_SETTINGS, _LANDMARKS = "settings", "--preprocess.landmarks"
_PLAN_TABLE = TableFormat(_PLAN, frozenset({"image_id"}), {"shard": r"[^/]+-\d{6,9}"})
# Estimated size of a prepared sample in a tar: bytes per pixel, and a constant for headers, padding and JSON.
# Measured on Shenzhen and Montgomery, equalized, at 256 and 512 px: 0.58 to 0.66 bytes per pixel.
_BYTES_PER_PX, _BYTES_PER_SAMPLE = 0.62, 4096


@dataclass(frozen=True)
class ShardPlan:
    """The records of one tar, `max_inputs` at most, and how they are checked and prepared.

    unmatched_masks: of the whole dataset, for its manifest; in the first tar's plan only. They are in no tar, so that
    no tar changes when one of them gets an image.
    """

    folder: str
    name: str
    records: tuple[Record, ...]
    preprocess: PreprocessSettings
    max_inputs: int
    odd_masks: OddMasks = "flag"
    unmatched_masks: tuple[Record, ...] = ()

    def to_json(self) -> str:
        """Encode as text: Ray Data would infer the types of nested objects for each block."""
        records = [record.to_dict() for record in self.records]
        return json.dumps(
            [self.folder, self.name, records, self.preprocess.model_dump(), self.max_inputs, self.odd_masks]
        )

    @classmethod
    def from_json(cls, text: str) -> "ShardPlan":
        """Decode what `to_json` wrote."""
        folder, name, rows, preprocess, max_inputs, odd_masks = json.loads(text)
        records = tuple(Record.from_dict(row) for row in rows)
        return cls(folder, name, records, PreprocessSettings.model_validate(preprocess), max_inputs, odd_masks)


class _DamagedPlanError(InputError):
    """A plan file was read, but its content is damaged or has another schema."""


def planned_ids(records: Iterable[Record], out: str) -> dict[tuple[str, str], str]:
    """Return the image_id of each (dataset, image_uri) in the plans that an earlier run left in `out`.

    Raises:
        InputError: a plan exists but cannot be read at the moment.

    """
    planned: dict[tuple[str, str], str] = {}
    for dataset in {record.dataset for record in records}:
        try:
            plan = _open_plan(storage.join(out, dataset))
        except _DamagedPlanError:  # plan_shards logs it
            continue
        if plan is not None and "image_id" in plan.column_names:  # older plans have no ids
            pairs = zip(plan.column("image_uri").to_pylist(), plan.column("image_id").to_pylist(), strict=True)
            planned.update({(dataset, uri): image_id for uri, image_id in pairs if uri and image_id})
    return planned


def plan_shards(
    records: Sequence[Record],
    out: str,
    preprocess: PreprocessSettings,
    images_per_shard: int = 256,
    shard_mib: int = 32,
    odd_masks: OddMasks = "flag",
) -> list[ShardPlan]:
    """Split each dataset's records, in order, into tars of about `shard_mib` and at most `images_per_shard` inputs.

    The result does not depend on the machine. Inputs stay in the tar that an earlier plan with the same settings gave
    them: images added to an archive go into new tars, and finished tars do not change.

    Raises:
        InputError: a folder holds a dataset of another archive or with other settings, or its plan cannot be read at
            the moment.

    """
    max_inputs = min(
        images_per_shard, max(1, int((shard_mib << 20) / (preprocess.size**2 * _BYTES_PER_PX + _BYTES_PER_SAMPLE)))
    )
    plans = []
    by_dataset: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_dataset[record.dataset].append(record)
    for dataset, members in sorted(by_dataset.items()):
        folder = storage.join(out, dataset)
        unmatched = tuple(record for record in members if is_unmatched_mask(record))
        images = [record for record in members if not is_unmatched_mask(record)]
        earlier = _read_plan(folder, images, _settings(preprocess, max_inputs, odd_masks))
        shards = assign_to_shards(images, earlier, dataset, max_inputs)
        planned = [
            ShardPlan(folder, name, tuple(inside), preprocess, max_inputs, odd_masks) for name, inside in shards.items()
        ]
        plans += [replace(plan, unmatched_masks=unmatched) for plan in planned[:1]] + planned[1:]
    return plans


def assign_to_shards(
    records: Sequence[Record], earlier: Sequence[tuple[str, str]], dataset: str, max_inputs: int
) -> dict[str, list[Record]]:
    """Return the records of each shard by name.

    Records in `earlier`, pairs of shard and image_uri, keep their shard; others go into new shards.
    """
    earlier_shards: defaultdict[str, deque[str]] = defaultdict(deque)
    for shard, uri in earlier:
        earlier_shards[uri].append(shard)
    kept: defaultdict[str, list[Record]] = defaultdict(list)
    new = []
    for record in records:
        if earlier_shards[record.image_uri]:
            kept[earlier_shards[record.image_uri].popleft()].append(record)
        else:
            new.append(record)
    first = max((_number(shard) + 1 for shard, _ in earlier), default=0)
    shards = {name: kept[name] for name in sorted(kept, key=_number)}
    for number, start in enumerate(range(0, len(new), max_inputs), start=first):
        shards[f"{dataset}-{number:06d}"] = new[start : start + max_inputs]
    return shards


def save_plan(plans: Sequence[ShardPlan]) -> None:
    """Write the plan of one dataset into its folder, before its first tar."""
    settings = json.dumps(_settings(plans[0].preprocess, plans[0].max_inputs, plans[0].odd_masks))
    assigned = [(plan.name, record) for plan in plans for record in plan.records]
    # An unusable record must not reserve an id that a usable one has.
    usable_ids = {record.image_id for _, record in assigned if record.usable}
    rows = [
        {
            "shard": shard,
            "image_uri": record.image_uri,
            "image_id": record.image_id if record.usable or record.image_id not in usable_ids else None,
        }
        for shard, record in assigned
    ]
    schema = _PLAN.with_metadata({**_PLAN.metadata, _SETTINGS: settings})
    storage.write_table(_path(plans[0].folder), table(rows, schema))


def _number(shard: str) -> int:
    return int(shard.rsplit("-", 1)[1])


def _settings(preprocess: PreprocessSettings, max_inputs: int, odd_masks: OddMasks) -> dict[str, Any]:
    """Return all settings that change every tar, by option."""
    return {
        **{f"--preprocess.{name}": value for name, value in preprocess.model_dump(mode="json").items()},
        "--odd-masks": odd_masks,
        "images per tar (--images-per-shard, --shard-mib)": max_inputs,
    }


def _require_same_settings(folder: str, earlier: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Return whether a dataset has these settings; other landmarks of --match-to are computed again, as it may grow.

    Raises:
        InputError: another setting differs. It would replace the dataset.

    """
    changed = [name for name, value in settings.items() if earlier.get(name) != value]
    if changed == [_LANDMARKS]:
        logger.warning("%s: --match-to gives other landmarks than before: all its tars are written again", folder)
        return False
    shown = [name for name in changed if name.startswith("--")] or changed  # the size changes the images per tar
    if shown:
        values = "; ".join(
            f"{name} {format_value(earlier.get(name))}, now {format_value(settings[name])}" for name in shown
        )
        raise InputError(
            f"{folder} was prepared with other settings ({values}): repeat those, pass another --out, or delete the "
            "folder"
        )
    return True


def _read_plan(folder: str, records: Sequence[Record], settings: dict[str, Any]) -> list[tuple[str, str]]:
    try:
        plan = _open_plan(folder)
    except _DamagedPlanError as error:
        logger.warning("%s; making a new plan", error)
        return []
    if plan is None:
        return []
    uris = plan.column("image_uri").to_pylist()
    if uris and {record.image_uri for record in records}.isdisjoint(uris):
        raise InputError(f"{folder} holds a dataset of another archive ({uris[0]}): pass another --dataset or --out")
    if not _require_same_settings(folder, _settings_of(plan, folder), settings):
        return []
    return list(zip(plan.column("shard").to_pylist(), uris, strict=True))


def _open_plan(folder: str) -> pa.Table | None:
    """Return the plan of a dataset, None where there is none.

    Raises:
        _DamagedPlanError: the file was read, but its content cannot be used.
        InputError: the file cannot be read at the moment, as when a bucket does not answer.

    """
    path = _path(folder)
    if not storage.exists(path):
        return None
    content = storage.read_bytes(path)
    try:
        plan = storage.read_table(path, content, _PLAN_TABLE)
        _settings_of(plan, folder)
        return plan
    except InputError as error:
        raise _DamagedPlanError(str(error)) from None


def _settings_of(plan: pa.Table, folder: str) -> dict[str, Any]:
    settings = parse_json(plan.schema.metadata.get(_SETTINGS.encode(), b"{}"), _path(folder))
    if not isinstance(settings, dict):
        raise InputError(f"{_path(folder)}: its settings are damaged")
    return settings


def _path(folder: str) -> str:
    return storage.join(folder, "plan.parquet")
