"""Continue an inference when a GPU fails: replace its actor, and keep a GPU that fails twice from all actors."""

import contextlib
import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lungseg import storage
from lungseg.errors import first_line
from lungseg.inference.actor import PredictPart
from lungseg.inference.cpu_tasks import InferenceJob
from lungseg.plurals import counted

logger = logging.getLogger(__name__)

_MAX_FAULTS = 2  # of a GPU; the first may be the network's or the driver's
_HOLD_S = 60.0  # for the GPUs of lost actors to become free
_MESSAGES = ("CUDA error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS")


class GpuActor(PredictPart):
    """An actor that ends its process when its GPU fails: after a CUDA error, no call in the process succeeds."""

    def __init__(self, job: InferenceJob, threads: int = 0) -> None:
        with _ending_after_faults(job):
            super().__init__(job, threads)
        self._own_job = job

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Predict the rows of a part; end the process when the GPU fails."""
        with _ending_after_faults(self._own_job):
            return self.predict(rows)

    def predict(self, rows: pa.Table) -> pa.Table:
        """Predict the rows of a part."""
        return super().__call__(rows)


class FaultyDevices:
    """The GPUs that failed during a job. Those that failed twice are held by an actor that does nothing."""

    def __init__(self, job: InferenceJob) -> None:
        self._folder = job.fault_folder
        self._counts: Counter[tuple[str, str]] = Counter()
        self._holders: dict[tuple[str, str], Any] = {}
        storage.delete(self._folder)  # of an earlier run, whose GPUs may be repaired

    def update(self) -> bool:
        """Read new faults and hold the GPUs that failed twice; return whether a fault explains the loss of an actor."""
        explained = False
        for path in storage.list_files(self._folder, (".json",)) if storage.exists(self._folder) else ():
            fault = storage.read_json(path)
            storage.delete(path)
            device = fault["node"], fault["gpu"]
            self._counts[device] += 1
            explained |= bool(device[1]) and self._counts[device] <= _MAX_FAULTS
            logger.warning(
                "GPU %s of %s failed: its actor is replaced (%s)", fault["gpu"], fault["host"], fault["error"]
            )
            if device[1] and self._counts[device] >= _MAX_FAULTS and device not in self._holders:
                self._hold(device, fault["host"])
        return explained

    def release(self) -> None:
        """Free the GPUs that are held."""
        for holder in self._holders.values():
            ray.kill(holder)
        self._holders = {}

    def _hold(self, device: tuple[str, str], host: str) -> None:
        """Start actors on the node of a GPU until one gets it; keep that one."""
        place = NodeAffinitySchedulingStrategy(device[0], soft=False)
        started = []
        try:
            while device not in self._holders:
                holder = _Holder.options(num_gpus=1, num_cpus=0, scheduling_strategy=place).remote()  # type: ignore[attr-defined]
                started.append(holder)
                if ray.get(holder.gpu.remote(), timeout=_HOLD_S) == device[1]:
                    self._holders[device] = started.pop()
                    logger.warning(
                        "GPU %s of %s failed %s: it is not used again", device[1], host, counted(_MAX_FAULTS, "time")
                    )
        except ray.exceptions.RayError as error:
            logger.warning("GPU %s of %s cannot be kept from the actors (%s)", device[1], host, first_line(error))
        finally:
            for holder in started:
                ray.kill(holder)


@ray.remote
class _Holder:
    def gpu(self) -> str:
        return _own_gpu()


def is_device_fault(error: BaseException) -> bool:
    """Return whether an exception of torch says that the GPU failed, not that its memory is full."""
    import torch

    is_of_torch = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
    return is_of_torch and (
        isinstance(error, torch.AcceleratorError) or any(message in str(error) for message in _MESSAGES)
    )


@contextlib.contextmanager
def _ending_after_faults(job: InferenceJob) -> Iterator[None]:
    """Record a fault of the GPU for the driver, and end the process; Ray then reports the actor as lost."""
    try:
        yield
    except Exception as error:
        if not is_device_fault(error):
            raise
        context = ray.get_runtime_context()
        fault = {"node": context.get_node_id(), "host": os.uname().nodename, "gpu": _own_gpu()}
        path = storage.join(job.fault_folder, f"{uuid.uuid4().hex}.json")
        storage.write_json(path, {**fault, "error": first_line(error)})
        os._exit(1)


def _own_gpu() -> str:
    """Return the number of this actor's GPU on its node, empty without one."""
    return ",".join(ray.get_runtime_context().get_accelerator_ids().get("GPU", []))
