"""Progress of a run, sent from its ranks to the monitoring and the driver."""

import logging
import tempfile
import threading
import time
from typing import Any

import ray
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lungseg import storage
from lungseg.arrays import Row
from lungseg.cluster.gauges import Gauges
from lungseg.progress import SharedProgressLine
from lungseg.training.run import Progress, Run, ShowProgress

logger = logging.getLogger(__name__)

_POST_INTERVAL_S = 0.5
_READ_S, _LAST_READ_S = 5.0, 30.0  # limits on a busy machine; what the last read misses is never shown


@ray.remote
class _Board:
    """Holds the progress of rank 0 until the driver reads it."""

    def __init__(self) -> None:
        self._notes: list[Progress] = []
        self._latest: Progress | None = None

    def post(self, progress: Progress) -> None:
        """Keep the latest progress, and every note until it is read."""
        self._latest = progress
        if progress.note:
            self._notes.append(progress)

    def read(self) -> tuple[list[Progress], Progress | None]:
        """Return and remove the notes; return the latest progress."""
        notes, self._notes = self._notes, []
        return notes, self._latest


def start_board() -> Any:
    """Start a board on the driver's node, which lives as long as the job."""
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return _Board.options(num_cpus=0, scheduling_strategy=node).remote()  # type: ignore[attr-defined]


def make_reporter(run: Run, ranks: tuple[int, int], board: Any) -> ShowProgress:
    """Return a function that reports a rank's progress to its log, the gauges and Ray Train; of rank 0 to the board.

    ranks: rank and world_size.
    """
    (rank, world_size), posted = ranks, 0.0
    gauges = Gauges("train", run.name, rank)

    def show(progress: Progress) -> None:
        nonlocal posted
        if progress.note:
            logger.info("epoch %d: %s", progress.epoch, progress.note)
        else:
            gauges.set("images_per_second", progress.images_per_second)
            gauges.set("rank_images_per_second", progress.images_per_second / world_size)
            gauges.set("device_wait_share", progress.device_wait_share)
            gauges.set("loss", progress.loss)
            if progress.peak_device_mib:
                gauges.set("peak_device_mib", progress.peak_device_mib)
        if progress.metrics is not None:
            report_epoch(progress.metrics, rank, run.folder)
        if rank == 0 and (progress.note or time.monotonic() - posted > _POST_INTERVAL_S):
            posted = time.monotonic()
            board.post.remote(progress)

    return show


def report_epoch(metrics: Row, rank: int, folder: str) -> None:
    """Report an epoch to Ray Train, for its Result, Tune and the dashboard; every rank calls it.

    Ray keeps metrics with a checkpoint only. lungseg has its own, so rank 0 reports a file that names its folder.
    """
    with tempfile.TemporaryDirectory() as pointer:
        storage.write_json(storage.join(pointer, "pointer.json"), {"checkpoints": storage.join(folder, "checkpoint")})
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(pointer) if rank == 0 else None)


def watch(board: Any, run: Run, ended: threading.Event, line: SharedProgressLine) -> None:
    """Show a run's progress until it ends, then the notes that are still unread."""
    epochs, start = run.settings.epochs, time.monotonic()
    is_last = False
    while not is_last:
        is_last = ended.wait(_POST_INTERVAL_S)
        if line.closed.is_set():
            return
        try:
            notes, latest = ray.get(board.read.remote(), timeout=_LAST_READ_S if is_last else _READ_S)
        except ray.exceptions.RayError:
            continue  # the board's node is lost or busy; fit() reports whether the run itself failed
        for note in notes:
            line.log(run.name, f"epoch {note.epoch}/{epochs}: {note.note}")
        if latest is None:
            line.update(run.name, f"starting workers, {time.monotonic() - start:.0f} s")
        elif not latest.note:
            position = f"epoch {latest.epoch}/{epochs}, step {latest.step}/{latest.total_steps}"
            line.update(run.name, f"{position}, loss {latest.loss:.3f}")
