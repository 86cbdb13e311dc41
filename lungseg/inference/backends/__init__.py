"""Libraries that compute a network on CPUs. Each is imported only when a network is opened with it."""

import importlib.util
import os
from typing import Literal, Protocol, get_args

from lungseg.arrays import F32, U8
from lungseg.errors import SettingsError

Runtime = Literal["onnxruntime", "openvino"]
"""Backends that run ONNX files; torch runs checkpoints."""
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


class Network(Protocol):
    """A loaded network."""

    def __call__(self, images: U8) -> F32:
        """Predict images u8[B,1,S,S] to probabilities f32[B,K,S,S], K classes; each image on its own."""
        ...


def is_installed(runtime: str) -> bool:
    """Return whether a backend can be imported."""
    return importlib.util.find_spec(runtime) is not None


def require_installed(runtime: str) -> None:
    """Check that a backend can be imported.

    Raises:
        SettingsError: it cannot.

    """
    if not is_installed(runtime):
        raise SettingsError(f"--backend {runtime}: not installed: run pip install {runtime}, or pass --backend auto")


def open_network(path: str, runtime: Runtime, threads: int = 0) -> Network:
    """Load an ONNX file. threads: 0 for as many as this process has CPUs.

    Raises:
        SettingsError: the backend is not installed.
        CheckpointError: the backend cannot load the file.

    """
    require_installed(runtime)
    threads = threads or available_threads()
    if runtime == "onnxruntime":
        from lungseg.inference.backends.onnxruntime_network import OnnxRuntimeNetwork

        return OnnxRuntimeNetwork(path, threads)
    from lungseg.inference.backends.openvino_network import OpenVinoNetwork

    return OpenVinoNetwork(path, threads)


def available_threads() -> int:
    """Return OMP_NUM_THREADS, as torch does, else the CPUs that this process may use."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    if named.isdecimal() and int(named):
        return int(named)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
