"""What a CPU task does in a preparation. In a module of its own: what it imports, every worker imports as it starts."""

import json
from typing import Any

import cv2

from lungseg.errors import LungsegError
from lungseg.prepare import shard_writer
from lungseg.prepare.shard_plan import ShardPlan


def write_row(row: dict[str, Any], key: bytes | None) -> dict[str, Any]:
    """Write one shard, `plan` as JSON to `done` as JSON.

    What a user can mend is returned as `error`: raised in a task, Ray would turn it into a traceback.
    """
    cv2.setNumThreads(1)  # Ray runs one task a core
    try:
        done = shard_writer.write_shard(ShardPlan.from_json(row["plan"]), key)
    except LungsegError as refused:
        done = {"error": str(refused)}
    return {"done": json.dumps(done)}
