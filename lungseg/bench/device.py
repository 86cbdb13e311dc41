"""The device of a measurement, and its clock."""

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

from lungseg.bench.timing import Clock, Seconds, cpu_clock
from lungseg.config import BenchSettings
from lungseg.errors import ResourceError
from lungseg.versions import versions

_LIBRARIES = ("torch", "numpy", "opencv-python-headless")


def choose_device(settings: BenchSettings) -> torch.device:
    """Return the device that the settings ask for.

    Raises:
        ResourceError: a GPU is asked for, and there is none.

    """
    has_gpu = settings.device != "cpu" and torch.cuda.is_available()
    if settings.device == "gpu" and not has_gpu:
        raise ResourceError("--device gpu: torch finds no GPU on this machine: pass --device cpu, or use a GPU node")
    return torch.device("cuda", 0) if has_gpu else torch.device("cpu")


def count_devices(device: torch.device) -> int:
    """Return the number of GPUs of the machine, or 1 on CPUs."""
    return torch.cuda.device_count() if device.type == "cuda" else 1


def count_cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return processor, cores, device and versions."""
    is_gpu = device.type == "cuda"
    return {
        "cores": count_cores(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "device": torch.cuda.get_device_name(device) if is_gpu else "cpu",
        "devices": count_devices(device),
        "torch_threads": torch.get_num_threads(),
        "versions": versions(_LIBRARIES),
    }


def clock_of(device: torch.device) -> Clock:
    """Return the clock for work on a device."""
    return _gpu_clock if device.type == "cuda" else cpu_clock


def _gpu_clock(work: Callable[[], object]) -> Seconds:
    """Run a function and wait for the GPU; its own seconds are those between two events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    began, cpu_began = time.perf_counter(), time.process_time()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return Seconds(wall, cpu, start.elapsed_time(end) / 1000.0)
