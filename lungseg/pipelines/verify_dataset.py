"""Verify prepared datasets on a cluster, one Ray Data task per shard."""

import json
import logging
from typing import Any

import ray.data

from lungseg.cluster.connection import connect
from lungseg.cluster.resources import require_cpus
from lungseg.dataset import catalog, verify
from lungseg.errors import ShardError, TaskResult
from lungseg.plurals import counted
from lungseg.progress import ProgressLine

logger = logging.getLogger(__name__)


def run(out: str) -> None:
    """Read every byte of the datasets in a folder and compare it with the recorded digests.

    Raises:
        ShardError: a file is missing, damaged, unexpected or written by another run; each problem is logged.
        InputError: there is no dataset.

    """
    unfinished = catalog.list_unfinished(out)
    problems = [f"{folder}: preparation is not finished: run lungseg prepare again" for folder in unfinished]
    items = []
    for folder in catalog.find_datasets([out]):
        metadata_problems, shards = verify.check_metadata(folder)
        problems += metadata_problems
        items += [{"item": json.dumps([folder, shard, rows])} for shard, rows in shards]
    line = ProgressLine(logger)
    for checked, messages in enumerate(_check(items), start=1):
        problems += messages
        line.update(f"checked {checked} of {counted(len(items), 'tar')}")
    for problem in problems:
        logger.error("%s", problem)
    if problems:
        raise ShardError(f"{out}: {counted(len(problems), 'problem')}, listed above; no file was changed")
    logger.info("%s: %s, all intact", out, counted(len(items), "tar"))


def _check(items: list[dict[str, Any]]) -> Any:
    if not items:
        return
    connect()
    require_cpus(1)
    for row in ray.data.from_items(items, override_num_blocks=len(items)).map(_check_shard).iter_rows():
        yield TaskResult.from_json(row["result"]).unwrap()


def _check_shard(row: dict[str, Any]) -> dict[str, Any]:
    folder, shard, rows = json.loads(row["item"])
    return {"result": TaskResult.of(verify.check_shard, folder, shard, rows).to_json()}
