"""ONNX Runtime on CPUs."""

import numpy as np
import onnxruntime

from lungseg.arrays import F32, U8
from lungseg.errors import CheckpointError, first_line
from lungseg.model.onnx_file import INPUT, OUTPUT

_ERRORS_ONLY = 3


class OnnxRuntimeNetwork:
    """A network in ONNX Runtime. Its results depend neither on the batch nor on the threads."""

    def __init__(self, path: str, threads: int) -> None:
        """Load a file.

        Raises:
            CheckpointError: it cannot be loaded.

        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Waiting threads would take the CPU from the processes that open and finish images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False  # it takes 25 MB more at 512 px, and no less time
        options.log_severity_level = _ERRORS_ONLY
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except MemoryError:
            raise
        except Exception as error:  # its exceptions have no class in common
            raise CheckpointError(
                f"{path}: ONNX Runtime cannot load it ({first_line(error)}): export it again"
            ) from None

    def __call__(self, images: U8) -> F32:
        """Predict images u8[B,1,S,S] to probabilities f32[B,K,S,S]."""
        # One by one: as fast as a batch on CPUs, with the memory for one image.
        results = [self._session.run([OUTPUT], {INPUT: images[i : i + 1]})[0] for i in range(len(images))]
        return np.concatenate(results)
