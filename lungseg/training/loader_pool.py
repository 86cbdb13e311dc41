"""Processes of one rank that read, decode and augment training samples, beside its own threads.

Augmentation in Python holds the interpreter's lock, so threads of one process load a few hundred images a second at
most, and delay the start of GPU kernels meanwhile. The samples are the same for any number of processes.
"""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from lungseg.dataset.sample_cache import SharedBytes, pixels_at, sample_bytes, without_pixels
from lungseg.dataset.sample_reader import SampleReader
from lungseg.errors import ResourceError
from lungseg.schema import Sample
from lungseg.training.loader_process import Reply, Request, Setup
from lungseg.training.transform import EpochTransform

_MAIN = "from lungseg.training.loader_process import main; main()"
_END_S = 5.0  # until a process that has nothing to do any more is killed
# One thread each: the libraries would otherwise start one for every core in every process.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class LoaderPool:
    """Processes that load augmented samples; as many threads may use it at once. Close it at the end.

    The processes are no children of `multiprocessing`: they neither import the caller's main module nor need /dev/shm,
    and each ends by itself when this process dies.
    """

    def __init__(self, count: int, reader: SampleReader, side: int, disk_mib: int) -> None:
        """Start the processes. side: of the square samples, px. disk_mib: local disk space for tars of a bucket.

        Raises:
            ResourceError: the system starts no more processes.

        """
        self._reader, self._side, self._classes = reader, side, len(reader.classes)
        self._processes: list[_Process] = []
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        try:
            for _ in range(count):
                self._processes.append(_Process(reader, side, disk_mib))
                self._idle.put(self._processes[-1])
        except OSError as error:
            self.close()
            raise ResourceError(
                f"cannot start {count} processes that load training images ({os.strerror(error.errno or 0)}): lower "
                "--loader.processes"
            ) from None

    def load(self, position: int, transform: EpochTransform) -> Sample:
        """Return an augmented sample of the reader; several threads may call it.

        Raises:
            LungsegError: the sample cannot be read, custom code failed, or a process was killed.

        """
        cache, size = self._reader.cache, sample_bytes(self._side, self._classes)
        cached = cache.get(position)
        offset = cache.reserve(size) if cached is None else cache.offset_of(position)
        bare = None if cached is None else without_pixels(cached)
        request = Request(transform, self._reader.source(position), bare, offset)
        process = self._idle.get()
        try:
            reply = process.ask(request)
            pixels = pixels_at(process.result.array, 0, reply.side, self._classes)
            image, masks = (array.copy() for array in pixels)
        finally:
            self._idle.put(process)
        if cached is None and offset is not None:
            cache.enter(position, offset, reply.sample, self._classes)
        return replace(reply.sample, image=image, masks=masks)

    def samples(self, transform: EpochTransform) -> "AugmentedSamples":
        """Return the augmented samples of one epoch, for `load_batches`."""
        return AugmentedSamples(self, transform)

    def close(self) -> None:
        """End the processes; return when they have ended."""
        for process in self._processes:
            process.connection.close()
        for process in self._processes:
            process.end()
        self._processes.clear()


@dataclass(frozen=True)
class AugmentedSamples:
    """The samples of a pool in one epoch, read like those of a `SampleReader`."""

    pool: LoaderPool
    transform: EpochTransform

    def read(self, position: int) -> Sample:
        """Return an augmented sample; raises as `LoaderPool.load`."""
        return self.pool.load(position, self.transform)


class _Process:
    def __init__(self, reader: SampleReader, side: int, disk_mib: int) -> None:
        classes = len(reader.classes)
        self.result = SharedBytes(sample_bytes(side, classes))
        cache = reader.cache.memory
        own_end, other_end = socket.socketpair()
        self.connection = Connection(own_end.detach())
        with other_end:
            self._popen = subprocess.Popen(  # noqa: S603  # fixed words
                [sys.executable, "-P", "-c", _MAIN, str(other_end.fileno())],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                pass_fds=(other_end.fileno(), cache.descriptor, self.result.descriptor),
            )
        with contextlib.suppress(ConnectionError):  # the first request tells why
            self.connection.send(
                Setup((cache.descriptor, cache.size), (self.result.descriptor, self.result.size), disk_mib, classes)
            )

    def ask(self, request: Request) -> Reply:
        try:
            self.connection.send(request)
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            raise ResourceError(f"a process that loads training images {self._end_reason()}") from None
        if isinstance(answer, str):
            raise RuntimeError(f"in a process that loads training images:\n{answer}")
        reply: Reply = answer.unwrap()
        return reply

    def end(self) -> None:
        try:
            self._popen.wait(_END_S)
        except subprocess.TimeoutExpired:  # such as a read of a bucket that does not answer
            self._popen.kill()
            self._popen.wait()

    def _end_reason(self) -> str:
        try:
            status = self._popen.wait(_END_S)
        except subprocess.TimeoutExpired:
            return "closed its connection: start the same command again"
        if status >= 0:
            return f"ended with exit status {status}: see its message above"
        name = signal.Signals(-status).name
        return (
            f"was killed ({name}), for lack of memory unless you did it: lower --loader.processes or "
            "--loader.cache-mib; the same command continues from the last checkpoint"
        )
