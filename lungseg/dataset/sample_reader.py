"""Read samples of prepared datasets from their tars. Every stage that needs a prepared sample reads it here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lungseg import storage
from lungseg.arrays import Row
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.index_rows import IndexRows
from lungseg.dataset.sample_cache import SampleCache
from lungseg.dataset.shard_cache import ShardCache, read_ranges
from lungseg.dataset.shard_format import Classes, decode_sample, member_ranges, verify_checksums
from lungseg.errors import ShardError
from lungseg.schema import Sample

RangeReader = Callable[[str, dict[str, tuple[int, int]]], dict[str, bytes]]
"""Reads byte ranges (offset, size) of a tar, by name."""

_LUNGS_ONLY = Classes()


def read_sample(
    tar: str, row: Row, classes: Classes = _LUNGS_ONLY, with_mask: bool = True, reader: RangeReader = read_ranges
) -> Sample:
    """Read the sample that an index row describes, verify its checksums and decode it.

    Raises:
        ShardError: the tar is damaged, or does not hold this sample at the offsets of the index.
        InputError: the tar cannot be read.

    """
    location = f"{tar}#{row['image_id']}"
    ranges = member_ranges(row)
    if not with_mask:
        ranges.pop("mask", None)
    members = reader(tar, ranges)
    verify_checksums(row, members, location)
    sample = decode_sample(members, location, classes)
    if (sample.dataset, sample.image_id) != (row["dataset"], row["image_id"]):
        raise ShardError(
            f"{location}: the tar holds {sample.dataset}/{sample.image_id} there, the index expects "
            f"{row['dataset']}/{row['image_id']}: run lungseg prepare again"
        )
    return sample


@dataclass(frozen=True)
class SampleSource:
    """Where a sample is: its tar, its index row, and the classes of its masks."""

    tar: str
    row: Row
    classes: Classes


class SampleReader:
    """Reads samples of prepared datasets by position, from any thread, and caches decoded samples.

    cache_mib: memory for decoded samples. disk_mib: local disk space for copies of tars that are stored in a bucket.
    with_masks: whether masks are read too. classes: of the masks; without them, those of the first dataset.
    """

    def __init__(
        self,
        datasets: Sequence[PreparedDataset],
        cache_mib: int = 0,
        disk_mib: int = 0,
        with_masks: bool = True,
        classes: Sequence[str] = (),
    ) -> None:
        self.rows = IndexRows([data.index for data in datasets])
        self._datasets = datasets
        self.cache = SampleCache(cache_mib << 20)
        self._with_masks = with_masks
        self.classes = tuple(classes) or datasets[0].preprocess.classes
        self._tars = ShardCache(disk_mib)

    def source(self, position: int) -> SampleSource:
        """Return where a sample is."""
        row, data = self.rows[position], self._datasets[self.rows.table_of(position)]
        return SampleSource(
            storage.join(data.folder, f"{row['shard']}.tar"), row, Classes(data.preprocess.classes, self.classes)
        )

    def read(self, position: int) -> Sample:
        """Read one sample; raises as `read_sample`."""
        cached = self.cache.get(position)
        if cached is not None:
            return cached
        source = self.source(position)
        sample = read_sample(source.tar, source.row, source.classes, self._with_masks, self._tars.read)
        return self.cache.add(position, sample, len(self.classes))
