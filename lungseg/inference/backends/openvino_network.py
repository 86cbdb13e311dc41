"""OpenVINO on CPUs."""

import threading

import numpy as np
import openvino

from lungseg.arrays import F32, U8
from lungseg.errors import CheckpointError, first_line


class OpenVinoNetwork:
    """A network in OpenVINO, always in f32: by itself, it would compute in bf16 on CPUs that can."""

    def __init__(self, path: str, threads: int) -> None:
        """Load a file.

        Raises:
            CheckpointError: it cannot be loaded.

        """
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # Several actors on a machine would all bind their threads to the same CPUs.
            "ENABLE_CPU_PINNING": False,
        }
        core = openvino.Core()
        try:
            self._request = core.compile_model(core.read_model(path), "CPU", options).create_infer_request()
        except MemoryError:
            raise
        except Exception as error:  # RuntimeError and those of its parts
            raise CheckpointError(f"{path}: OpenVINO cannot load it ({first_line(error)}): export it again") from None
        self._lock = threading.Lock()  # a request computes one batch at a time

    def __call__(self, images: U8) -> F32:
        """Predict images u8[B,1,S,S] to probabilities f32[B,K,S,S]."""
        # One by one: as fast as a batch on CPUs, with the memory for one image.
        return np.concatenate([self._predict(images[i : i + 1]) for i in range(len(images))])

    def _predict(self, images: U8) -> F32:
        with self._lock:
            results = self._request.infer([np.ascontiguousarray(images)])
            return np.array(results[0], np.float32)  # a copy: the request uses its memory again
