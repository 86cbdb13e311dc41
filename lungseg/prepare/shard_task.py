"""The Ray Data task of `prepare`. Every worker imports this module at its start, so its imports are few."""

from typing import Any

import cv2

from lungseg.arrays import Row
from lungseg.errors import TaskResult
from lungseg.prepare import shard_writer
from lungseg.prepare.shard_plan import ShardPlan


def write_planned_shard(row: dict[str, Any], key: bytes | None) -> dict[str, Any]:
    """Write one shard: `plan` as JSON to `result`, a TaskResult of the numbers that `write_shard` returns."""
    cv2.setNumThreads(1)  # Ray runs one task per core
    return {"result": TaskResult.of(_write_shard, row["plan"], key).to_json()}


def _write_shard(plan: str, key: bytes | None) -> Row:
    return shard_writer.write_shard(ShardPlan.from_json(plan), key)
