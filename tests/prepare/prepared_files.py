"""Read prepared datasets in tests."""

from pathlib import Path

from lungseg.dataset import catalog
from lungseg.dataset.sample_reader import SampleReader


def read_all(folder: Path) -> None:
    data = catalog.open_dataset(str(folder))
    reader = SampleReader([data])
    for position in range(data.index.num_rows):
        reader.read(position)
