"""Inference on a cluster: CPU tasks open the images, actors with the models predict, CPU tasks finish the masks."""

import functools
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
from ray.data.exceptions import ExecutionTimeoutError

from lungseg.cluster.connection import cluster_total, connect
from lungseg.cluster.gauges import Gauges
from lungseg.cluster.resources import WorkerAllocation, allocate_workers, require_cpus
from lungseg.cluster.shared_storage import require_shared_storage
from lungseg.config import InferSettings
from lungseg.config.precision import require_fp16_device
from lungseg.errors import ResourceError, TaskResult, first_line
from lungseg.inference import part_plan
from lungseg.inference.cpu_tasks import InferenceJob, finish_part, open_part
from lungseg.inference.job_backend import with_backend
from lungseg.inference.summary import StageTimes
from lungseg.ingest.crash_isolation import too_many_crashes
from lungseg.model import checkpoint
from lungseg.pipelines.faulty_devices import FaultyDevices, GpuActor
from lungseg.plurals import counted
from lungseg.predictions.parts import StatusCounts

logger = logging.getLogger(__name__)

# Shares of a CPU. Tasks and actors share CPUs: while one waits, another computes. The two shares must differ: if they
# are equal, Ray Data fuses the tasks that open images into the actors.
_TASK_CPUS, _ACTOR_CPUS = 0.5, 0.49
_MIN_TASKS = 2  # at once: with one, Ray Data would open all parts before it finishes the first
# Seconds without progress until the workers are started again; after the last, the job ends. An actor that dies while
# it has nothing to do leaves Ray Data waiting for ever, but on a busy machine a part may take longer than the first.
_STALLS_S = (120, 1200, 6 * 3600)
_MAX_LOSSES = 3  # of actors in succession, without a finished part in between


def predict_on_cluster(
    job: InferenceJob, rows: Sequence[dict[str, Any]], times: StageTimes
) -> Iterator[dict[str, Any]]:
    """Process parts (number, items, digest) in all stages; yield the result of `finish_part` as each part finishes.

    A lost actor or node ends or stalls the Ray Data pipeline. It is then restarted on the remaining nodes.

    Raises:
        ResourceError: the cluster is too small, actors are lost repeatedly, or there is no progress for 6 hours.

    """
    connect()
    first_files = [item.files()[0] for item in part_plan.unpack_items(rows[0]["items"])]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = None  # a part must stay one block: it becomes one file
    gauges, statuses = Gauges("infer"), Counter[str]()
    allocation = _allocate(job.settings, job.settings.workers)
    # After allocate_workers, as an autoscaler may add nodes.
    require_shared_storage(job.out, [checkpoint.identity_file(folder) for folder in job.checkpoints], first_files)
    # The same number of threads until the end: it changes the last bits of sums.
    threads = 0 if allocation.gpus else allocation.cpus
    remaining, losses, batch_size = {row["number"]: row for row in rows}, 0, job.settings.batch_size
    faulty, stalls = FaultyDevices(job), 0
    while remaining:
        context.execution_no_progress_timeout_s = _STALLS_S[stalls]
        try:
            for row in _run_stages(job, list(remaining.values()), allocation, threads, times):
                del remaining[row["number"]]
                losses = 0
                batch_size = _log_smaller_batches(row, batch_size)
                yield row
                _update_gauges(gauges, times, statuses, row)
        except ExecutionTimeoutError:
            _require_next_limit(job.out, stalls)
            minutes, parts = _STALLS_S[stalls] // 60, counted(len(remaining), "part")
            logger.warning("no progress in %d minutes: starting the workers again, %s left", minutes, parts)
            stalls += 1
            allocation = _reallocate(job)
        except ray.exceptions.RayTaskError:
            raise  # a bug, with its traceback
        except ray.exceptions.RayError as error:
            losses += not faulty.update()
            if losses > _MAX_LOSSES:
                raise ResourceError(too_many_crashes(f"{job.out} ({first_line(error)})", losses)) from error
            logger.warning(
                "a worker was lost: continuing on the remaining nodes, %s left", counted(len(remaining), "part")
            )
            allocation = _reallocate(job)
    faulty.release()


def _require_next_limit(out: str, stalls: int) -> None:
    """Check that another, longer limit follows that of a number of earlier stalls.

    Raises:
        ResourceError: it was the last.

    """
    if stalls + 1 == len(_STALLS_S):
        hours = _STALLS_S[-1] // 3600
        raise ResourceError(
            f"{out}: no progress in {hours} hours: run the same command when the machine is less busy; it continues"
        ) from None


def _log_smaller_batches(row: dict[str, Any], batch_size: int) -> int:
    """Log if an actor had to halve its batch; return the smallest batch so far."""
    result = TaskResult.from_json(row["result"])
    smallest = batch_size if result.error is not None else min(batch_size, result.value["batch_size"])
    if smallest < batch_size:
        logger.warning(
            "a GPU has too little memory for %d images: it predicts %d at once; pass --batch-size %d next time",
            *(batch_size, smallest, smallest),
        )
    return smallest


def _reallocate(job: InferenceJob) -> WorkerAllocation:
    """Allocate the requested workers, or as many as fit if a node was lost."""
    try:
        return _allocate(job.settings, job.settings.workers)
    except ResourceError:
        return _allocate(job.settings, "auto")


def _allocate(settings: InferSettings, workers: int | str) -> WorkerAllocation:
    """Allocate actors, several to a GPU where --gpus-per-actor asks for it."""
    per_gpu = int(1 / settings.gpus_per_actor + 1e-9)
    if per_gpu == 1 or settings.device == "cpu":
        return allocate_workers(workers, settings.device)
    allocation = allocate_workers(workers if workers == "auto" else -(-int(workers) // per_gpu), settings.device)
    if not allocation.gpus:
        return allocate_workers(workers, settings.device)
    count = per_gpu * allocation.workers
    require_cpus(math.ceil(_ACTOR_CPUS * count))
    return replace(allocation, workers=count if workers == "auto" else min(count, int(workers)))


def _run_stages(
    job: InferenceJob, rows: Sequence[dict[str, Any]], allocation: WorkerAllocation, threads: int, times: StageTimes
) -> Iterator[dict[str, Any]]:
    """Run one Ray Data pipeline over the parts."""
    count = min(allocation.workers, len(rows))
    times.device, times.actors = ("cuda" if allocation.gpus else "cpu"), count
    if job.settings.precision == "auto":
        part_plan.claim_device(job.out, times.device)
    require_fp16_device(job.settings.precision, bool(allocation.gpus), "--precision")
    actor = _ACTOR_CPUS * (1 if allocation.gpus else allocation.cpus)
    task = cpus_per_task(allocation, cluster_total("CPU") - count * actor)
    logger.info("predicting with %s", counted(count, "GPU actor" if allocation.gpus else "CPU actor"))
    job = with_backend(job, times.device)
    with warnings.catch_warnings():
        # Ray 2.64 will rename max_restarts; 2.60 has no replacement yet.
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        done = (
            ray.data.from_items(list(rows), override_num_blocks=len(rows))
            .map_batches(functools.partial(open_part, job=job), batch_size=None, batch_format="pyarrow", num_cpus=task)
            .map_batches(
                GpuActor,
                fn_constructor_kwargs={"job": job, "threads": threads},
                # Run in the actor's main thread: in other threads, glibc returns large buffers to the system.
                compute=ray.data.ActorPoolStrategy(size=count, enable_true_multi_threading=True),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=actor,
                num_gpus=job.settings.gpus_per_actor if allocation.gpus else 0,
                max_restarts=0,  # otherwise Ray Data waits for a lost actor, forever if the cluster has no room
            )
            .map_batches(
                functools.partial(finish_part, job=job), batch_size=None, batch_format="pyarrow", num_cpus=task
            )
        )
    yield from done.iter_rows()


def cpus_per_task(allocation: WorkerAllocation, free: float) -> float:
    """Return the share of a CPU per task. free: CPUs that the actors leave."""
    has_large_node = any(node["Resources"].get("CPU", 0) >= 2 for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
    share = 1.0 if allocation.gpus and has_large_node else _TASK_CPUS
    return min(share, math.floor(100 * free / _MIN_TASKS) / 100)


def _update_gauges(gauges: Gauges, times: StageTimes, statuses: Counter[str], row: dict[str, Any]) -> None:
    """Report the progress of this run to the cluster's monitoring."""
    result = TaskResult.from_json(row["result"])
    if result.error is not None:
        return
    statuses.update(StatusCounts.from_json(result.value["counts"]).statuses)
    for status, count in statuses.items():
        gauges.set("rows", count, status)
    gauges.set("images_per_second", times.images / (time.time() - times.began))
    if times.device_wait_share is not None:
        gauges.set("device_wait_share", times.device_wait_share)
