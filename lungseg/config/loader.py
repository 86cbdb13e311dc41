"""Settings of the loader of training images."""

from typing import Annotated, Literal, Self

from pydantic import Field

from lungseg.config.shared import Count, Settings


class LoaderSettings(Settings):
    """Data loading of each rank."""

    batch_size: Count = "auto"
    """images per rank and batch (1 only with --compute.batch-norm frozen or sync); auto: the rank's share of
    --loader.global-batch-size, or 8 without it"""
    global_batch_size: Annotated[int, Field(ge=0)] = 0
    """images per optimizer step (or slightly more), over all ranks and accumulated batches, so that 1, 2 or 8 ranks
    train alike; 0: as many as the batches of the ranks have together"""
    processes: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """processes per rank that read, decode and augment training images, beside the rank itself; 0: two threads of the
    rank do it; auto: with a GPU and three or more CPUs one less than its CPUs, else 0. The images are the same"""
    cache_mib: Annotated[int, Field(ge=0)] = 1024
    """memory for decoded samples, MiB per rank; 704 samples of 512 px take 360"""
    disk_mib: Annotated[int, Field(ge=0)] = 100_000
    """disk cache in ~/.cache/lungseg for tars from a bucket, MiB per machine"""

    @property
    def process_count(self) -> int:
        """Number of processes; auto is 0 until `for_rank` has replaced it."""
        return 0 if self.processes == "auto" else self.processes

    @property
    def threads(self) -> int:
        """Threads of the rank that read and decode, where no process does it, and that measure in evaluation."""
        return max(2, self.process_count)

    def for_rank(self, cpus: int, has_gpu: bool) -> Self:
        """Replace `auto` processes by those of a rank with this many CPUs."""
        if self.processes != "auto":
            return self
        # A network on CPUs takes longer for an image than a thread does to load it.
        return self.model_copy(update={"processes": cpus - 1 if has_gpu and cpus > 2 else 0})
