"""The tables of a command: predictions.parquet with all columns, predictions.csv with those for a reader."""

from collections.abc import Sequence

from lungseg import storage
from lungseg.arrays import Row
from lungseg.arrow import HAS_ARROW, pa
from lungseg.config.class_names import ONE_CLASS
from lungseg.predictions.csv_table import CsvTable
from lungseg.predictions.ranking import doubt_key
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import METADATA, USABLE, table

CSV, PARQUET = "predictions.csv", "predictions.parquet"
TABLES = (CSV, PARQUET) if HAS_ARROW else (CSV,)

_FILES = (
    ("mask_file", "mask below the output folder: PNG, 255 is lung, size and orientation of the stored pixels"),
    ("right_mask_file", "mask of the patient's right lung alone, as mask_file"),
    ("left_mask_file", "mask of the patient's left lung alone, as mask_file"),
    ("overlay_file", "overlay below the output folder: the upright picture with the outlines"),
    ("dicom_seg_file", "DICOM segmentation below the output folder; null: not asked for, not DICOM, or held back"),
)
_CLASS_FILE = "mask of this class alone, as mask_file"

CSV_COLUMNS = (
    *("source_uri", "status", "doubt", "flags", "doubt_reason", "area_px", "right_lung_px", "left_lung_px"),
    *("area_cm2", "right_lung_cm2", "left_lung_cm2", "mean_probability", "height", "width", "codes", "message"),
    *("model_name", "seen_in_training"),
    *("mask_file", "right_mask_file", "left_mask_file", "overlay_file", "dicom_seg_file"),
)


def by_doubt(rows: Sequence[Row]) -> list[Row]:
    """Sort rows: most flags first, then the highest doubt; images without a mask come last."""
    return sorted(rows, key=lambda row: (not has_mask(row), doubt_key(row), row["source_uri"]))


def has_mask(row: Row) -> bool:
    """Return whether an image was segmented."""
    return row["status"] in USABLE


def write_tables(
    out: str, rows: Sequence[Row], classes: Sequence[str] = ONE_CLASS, class_files: Sequence[str] = ()
) -> None:
    """Write the tables in the order of the rows; an edge installation writes no Parquet.

    classes: of the model. class_files: columns of their masks.
    """
    ranked = CsvTable((*CSV_COLUMNS, *class_files), classes, with_metrics=False)  # there are no reference masks
    ranked.add(rows)
    storage.write_bytes(storage.join(out, CSV), ranked.encode())
    if HAS_ARROW:
        storage.write_table(storage.join(out, PARQUET), table(list(rows), _segmented(class_files)))


def _segmented(class_files: Sequence[str]) -> pa.Schema:
    """Return PREDICTIONS with the columns of the files of each image."""
    described = [*_FILES, *((name, _CLASS_FILE) for name in class_files)]
    files = (pa.field(name, pa.string(), metadata={"description": text}) for name, text in described)
    return pa.schema([*PREDICTIONS, *files], metadata=METADATA)
