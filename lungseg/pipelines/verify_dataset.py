"""Check finished data sets over a cluster, one Ray Data task a shard."""

import json
import logging
from typing import Any

import ray.data

from lungseg.cluster.connection import connect
from lungseg.cluster.resources import require_cpus
from lungseg.dataset import catalog, verify
from lungseg.errors import ShardError, TaskResult
from lungseg.progress import ProgressLine

logger = logging.getLogger(__name__)


def run(out: str) -> None:
    """Read every byte of the data sets in a folder and compare it with what was written.

    Raises:
        ShardError: something is missing, damaged, strange or of another run; each thing is logged with its name.
        InputError: there is no data set.

    """
    begun = catalog.list_unfinished(out)
    wrong, items = [f"{folder}: begun and not finished: run jobs/prepare.py again" for folder in begun], []
    for folder in catalog.find_datasets([out]):
        found, shards = verify.check_metadata(folder)
        wrong += found
        items += [{"item": json.dumps([folder, shard, rows])} for shard, rows in shards]
    line = ProgressLine(logger)
    for done, messages in enumerate(_check(items), start=1):
        wrong += messages
        line.update(f"checked {done} of {len(items)} tars")
    for message in wrong:
        logger.error("%s", message)
    if wrong:
        raise ShardError(f"{out}: {len(wrong)} things are wrong, listed above; nothing was changed")
    logger.info("%s: %d tars, all as they were written", out, len(items))


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
