"""Build archives of empty files, and list which masks their records have."""

from pathlib import Path

from lungseg.schema import Record


def fill(folder: Path, *names: str) -> Path:
    """Create empty files with their folders; return the folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def masks_by_id(folder: Path, records: list[Record]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return (dataset, image_id) of each record to its masks, as paths below the archive."""
    assert len({(record.dataset, record.image_id, record.image_uri) for record in records}) == len(records)
    return {
        (record.dataset, record.image_id): tuple(uri.removeprefix(f"{folder}/") for uri in record.mask_uris)
        for record in records
    }
