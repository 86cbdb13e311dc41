"""An inference over a cluster: parts are opened on CPUs, predicted by actors that hold the model, finished on CPUs."""

import functools
import json
import logging
import math
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
import ray.data

from lungseg import storage
from lungseg.cluster.connection import cluster_total, connect
from lungseg.cluster.gauges import Gauges
from lungseg.cluster.resources import WorkerAllocation, allocate_workers
from lungseg.cluster.shared_storage import require_shared_storage
from lungseg.config.precision import require_fp16_device
from lungseg.errors import ResourceError, TaskResult, first_line
from lungseg.inference import part_plan
from lungseg.inference.actor import PredictPart
from lungseg.inference.cpu_tasks import InferenceJob, finish_part, open_part
from lungseg.inference.items import Item
from lungseg.inference.summary import StageTimes
from lungseg.ingest.crash_isolation import too_many_crashes
from lungseg.predictions.parts import StatusCounts

logger = logging.getLogger(__name__)

# On CPUs, which opening and finishing share with the model: while one waits, another works. The actors' part is another
# number than the tasks', or Ray Data would open parts within the actors.
_TASK_PART, _ACTOR_PART = 0.5, 0.49
_LEAST_TASKS = 2  # at once: with room for one, Ray Data would open all parts before it finished the first
_LOSSES = 3  # of actors, one after the other, without a part between them


def predict_on_cluster(
    job: InferenceJob, rows: Sequence[dict[str, Any]], times: StageTimes
) -> Iterator[dict[str, Any]]:
    """Send parts (number, items, digest) through the stages; give what `finish_part` says of each, as they end.

    An actor that is lost, with its node or alone, ends Ray Data's work: it is begun anew with what there is then.

    Raises:
        ResourceError: the cluster is too small, or actors are lost again and again.

    """
    connect()
    first = [Item.from_dict(item).files()[0] for item in json.loads(rows[0]["items"])]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = None  # a part stays one block, as it becomes one file
    gauges, counts = Gauges("infer"), Counter[str]()
    placed = allocate_workers(job.settings.workers, job.settings.device)
    # After an autoscaler has brought the nodes that it was asked for.
    require_shared_storage(job.out, [storage.join(folder, "config.json") for folder in job.checkpoints], first)
    threads = 0 if placed.gpus else placed.cpus  # to the end: how many sum up changes the last bits
    left, lost = {row["number"]: row for row in rows}, 0
    while left:
        try:
            for row in _through(job, list(left.values()), placed, threads, times):
                del left[row["number"]]
                lost = 0
                yield row
                _show(gauges, times, counts, row)
        except ray.exceptions.RayTaskError:
            raise  # a bug, with its traceback
        except ray.exceptions.RayError as error:
            lost += 1
            if lost > _LOSSES:
                raise ResourceError(too_many_crashes(f"{job.out} ({first_line(error)})", lost)) from error
            logger.warning("a worker was lost: going on with what is there, %d parts are left", len(left))
            placed = _what_is_left(job)


def _what_is_left(job: InferenceJob) -> WorkerAllocation:
    """Place as many actors as before, or where a node is lost as many as there is room for."""
    try:
        return allocate_workers(job.settings.workers, job.settings.device)
    except ResourceError:
        return allocate_workers("auto", job.settings.device)


def _through(
    job: InferenceJob, rows: Sequence[dict[str, Any]], placed: WorkerAllocation, threads: int, times: StageTimes
) -> Iterator[dict[str, Any]]:
    """Send parts through the stages once."""
    count = min(placed.workers, len(rows))
    times.device, times.actors = ("cuda" if placed.gpus else "cpu"), count
    if job.settings.precision == "auto":
        part_plan.claim_device(job.out, times.device)
    require_fp16_device(job.settings.precision, bool(placed.gpus), "--precision")
    actor = _ACTOR_PART * (1 if placed.gpus else placed.cpus)
    work = _task_part(placed, cluster_total("CPU") - count * actor)
    logger.info("%d %s actors hold the model", count, "GPU" if placed.gpus else "CPU")
    job = replace(job, options=replace(job.options, device=times.device))
    with warnings.catch_warnings():
        # Ray 2.64 will have another word for max_restarts; 2.60 has none yet.
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        done = (
            ray.data.from_items(list(rows), override_num_blocks=len(rows))
            .map_batches(functools.partial(open_part, job=job), batch_size=None, batch_format="pyarrow", num_cpus=work)
            .map_batches(
                PredictPart,
                fn_constructor_kwargs={"job": job, "threads": threads},
                # In the actor's main thread, not one of Ray Data's: other threads than that give large buffers back.
                compute=ray.data.ActorPoolStrategy(size=count, enable_true_multi_threading=True),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=actor,
                num_gpus=placed.gpus,
                max_restarts=0,  # else Ray Data waits for a lost actor's return, on a cluster without room for ever
            )
            .map_batches(
                functools.partial(finish_part, job=job), batch_size=None, batch_format="pyarrow", num_cpus=work
            )
        )
    yield from done.iter_rows()


def _task_part(placed: WorkerAllocation, free: float) -> float:
    """Say which part of a CPU a task takes, where the actors leave so many free."""
    roomy = any(node["Resources"].get("CPU", 0) >= 2 for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
    part = 1.0 if placed.gpus and roomy else _TASK_PART
    return min(part, math.floor(100 * free / _LEAST_TASKS) / 100)


def _show(gauges: Gauges, times: StageTimes, counts: Counter[str], row: dict[str, Any]) -> None:
    """Tell the cluster's monitoring how far this start is."""
    result = TaskResult.from_json(row["result"])
    if result.error is not None:
        return
    counts.update(StatusCounts.from_json(result.value["account"]).statuses)
    for status, count in counts.items():
        gauges.set("rows", count, status)
    gauges.set("images_per_second", times.images / (time.time() - times.began))
    idle = times.as_json().get("device_idle_share")
    if idle is not None:
        gauges.set("device_wait_share", idle)
