"""Which input goes into which tar: decided before any work begins, and kept when the archive grows."""

import json
import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from lungseg import storage
from lungseg.config import OddMasks, PreprocessSettings
from lungseg.errors import InputError
from lungseg.schema import SCHEMA, Record, table

logger = logging.getLogger(__name__)

_PLAN = pa.schema(
    [("shard", pa.string()), ("image_uri", pa.string()), ("image_id", pa.string())],
    metadata={"lungseg.schema": str(SCHEMA).encode()},
)
# A prepared sample takes about this many bytes of a tar for a pixel of its square, and this many besides: measured on
# Shenzhen and Montgomery, equalised, at 256 and 512 px (0.58 to 0.66), with two tar headers and padding.
_BYTES_PER_PX, _BYTES_BESIDES = 0.62, 4096


@dataclass(frozen=True)
class ShardPlan:
    """The records that go into one tar of a data set, `room` at most, and how they are checked and prepared."""

    folder: str
    name: str
    records: tuple[Record, ...]
    preprocess: PreprocessSettings
    room: int
    odd_masks: OddMasks = "flag"

    def to_json(self) -> str:
        """Write it as text, which any worker reads; Ray Data would guess types from nested objects, block by block."""
        records = [record.to_dict() for record in self.records]
        return json.dumps([self.folder, self.name, records, self.preprocess.model_dump(), self.room, self.odd_masks])

    @classmethod
    def from_json(cls, text: str) -> "ShardPlan":
        """Read what `to_json` wrote."""
        folder, name, records, preprocess, room, odd_masks = json.loads(text)
        made = tuple(Record.from_dict(record) for record in records)
        return cls(folder, name, made, PreprocessSettings.model_validate(preprocess), room, odd_masks)


class _DamagedPlanError(InputError):
    """A plan was read, and is none of this schema."""


def planned_ids(records: Iterable[Record], out: str) -> dict[tuple[str, str], str]:
    """Say which image_id each (dataset, image_uri) holds by the plans that an earlier start left in `out`.

    Raises:
        InputError: a plan is there, but cannot be read now.

    """
    held: dict[tuple[str, str], str] = {}
    for dataset in {record.dataset for record in records}:
        try:
            found = _open_plan(storage.join(out, dataset))
        except _DamagedPlanError:  # plan_shards, which comes to it next, says so
            continue
        if found is not None and "image_id" in found.column_names:  # older plans have no ids
            pairs = zip(found.column("image_uri").to_pylist(), found.column("image_id").to_pylist(), strict=True)
            held.update({(dataset, uri): own for uri, own in pairs if uri and own})
    return held


def plan_shards(
    records: Sequence[Record],
    out: str,
    preprocess: PreprocessSettings,
    per_shard: int = 256,
    shard_mib: int = 32,
    odd_masks: OddMasks = "flag",
) -> list[ShardPlan]:
    """Cut each data set's records, in their order, into tars of about `shard_mib` and at most `per_shard` inputs.

    The same plan on any machine. What an earlier plan of the same settings put into a tar stays in it, so that images
    added to an archive make new tars and leave the old ones alone.

    Raises:
        InputError: a folder holds a data set of another archive, or its plan cannot be read now.

    """
    room = min(per_shard, max(1, int((shard_mib << 20) / (preprocess.size**2 * _BYTES_PER_PX + _BYTES_BESIDES))))
    plans = []
    own: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        own[record.dataset].append(record)
    for dataset in sorted(own):
        folder = storage.join(out, dataset)
        earlier = _read_plan(folder, own[dataset], _make(preprocess, room))
        cut = assign_to_shards(own[dataset], earlier, dataset, room)
        plans += [ShardPlan(folder, name, tuple(inside), preprocess, room, odd_masks) for name, inside in cut.items()]
    return plans


def assign_to_shards(
    records: Sequence[Record], earlier: Sequence[tuple[str, str]], dataset: str, room: int
) -> dict[str, list[Record]]:
    """Deal records to shards, by name: those of the earlier (shard, image_uri) to their own, the others to new ones."""
    places: defaultdict[str, deque[str]] = defaultdict(deque)
    for shard, uri in earlier:
        places[uri].append(shard)
    kept: defaultdict[str, list[Record]] = defaultdict(list)
    new = []
    for record in records:
        if places[record.image_uri]:
            kept[places[record.image_uri].popleft()].append(record)
        else:
            new.append(record)
    first = max((_number(shard) + 1 for shard, _ in earlier), default=0)
    cut = {name: kept[name] for name in sorted(kept, key=_number)}
    for number, start in enumerate(range(0, len(new), room), start=first):
        cut[f"{dataset}-{number:06d}"] = new[start : start + room]
    return cut


def save_plan(plans: Sequence[ShardPlan]) -> None:
    """Write one data set's plan beside its tars, before the first of them."""
    made_with = _make(plans[0].preprocess, plans[0].room)
    placed = [(plan.name, record) for plan in plans for record in plan.records]
    # What cannot be used holds no id that something usable has.
    taken = {record.image_id for _, record in placed if record.usable}
    rows = [
        {
            "shard": shard,
            "image_uri": record.image_uri,
            "image_id": record.image_id if record.usable or record.image_id not in taken else None,
        }
        for shard, record in placed
    ]
    made = table(rows, _PLAN.with_metadata({**_PLAN.metadata, "made_with": made_with}))
    storage.write_table(_path(plans[0].folder), made)


def _number(shard: str) -> int:
    return int(shard.rsplit("-", 1)[1])


def _make(preprocess: PreprocessSettings, room: int) -> str:
    """Digest of what the cut depends on; another one is a new plan, as every tar changes with it."""
    return storage.digest([SCHEMA, preprocess.model_dump(), room])


def _read_plan(folder: str, records: Sequence[Record], made_with: str) -> list[tuple[str, str]]:
    try:
        found = _open_plan(folder)
    except _DamagedPlanError as error:
        logger.warning("%s; planning anew", error)
        return []
    if found is None:
        return []
    uris = found.column("image_uri").to_pylist()
    if uris and {record.image_uri for record in records}.isdisjoint(uris):
        raise InputError(f"{folder} holds a data set of another archive ({uris[0]}): pass another --dataset or --out")
    if found.schema.metadata.get(b"made_with", b"").decode() != made_with:
        return []
    return list(zip(found.column("shard").to_pylist(), uris, strict=True))


def _open_plan(folder: str) -> pa.Table | None:
    """Read a plan that is there; one that a bucket does not give now is not taken for a damaged one."""
    path = _path(folder)
    if not storage.exists(path):
        return None
    content = storage.read_bytes(path)
    try:
        return storage.read_table(path, content)
    except InputError as error:
        raise _DamagedPlanError(str(error)) from None


def _path(folder: str) -> str:
    return storage.join(folder, "plan.parquet")
