"""Write the files of segmented X-rays."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lungseg import storage
from lungseg.arrays import U8, Grey, Row
from lungseg.config import ExportSettings
from lungseg.config.class_names import ONE_CLASS
from lungseg.config.segment import SegmentFormat, SegmentSettings
from lungseg.errors import ImageError, InputError
from lungseg.export.overlay_file import encode_overlay
from lungseg.export.writers import encode_row
from lungseg.imaging.codecs import decode_rle
from lungseg.imaging.intensity import normalise
from lungseg.segment_command.inputs import GivenImage
from lungseg.segment_command.tables import has_mask

FILES: dict[SegmentFormat, dict[str, str]] = {
    "masks": {"mask_file": ".png"},
    "lung-masks": {"right_mask_file": ".right.png", "left_mask_file": ".left.png"},
    "overlays": {"overlay_file": ".png"},
    "dicom-seg": {"dicom_seg_file": ".dcm"},
}
"""Columns of the files that each format has for an image, and their suffixes; those of class-masks depend on the model:
see `files_of`."""
FILE_COLUMNS = tuple(column for columns in FILES.values() for column in columns)


def files_of(kind: SegmentFormat, classes: Sequence[str]) -> dict[str, str]:
    """Return the columns of the files of a format and their suffixes. classes: of the model."""
    return {f"{name}_mask_file": f".{name}.png" for name in classes} if kind == "class-masks" else FILES[kind]


def file_columns(settings: SegmentSettings, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of the files of all formats: FILE_COLUMNS, and those of class-masks if they are written."""
    return (*FILE_COLUMNS, *(files_of("class-masks", classes) if "class-masks" in settings.formats else ()))


@dataclass
class Outputs:
    """Writes files below a folder. refused: why some were not written. done: labels of the images that have theirs.

    classes: of the model.
    """

    out: str
    settings: SegmentSettings
    classes: tuple[str, ...] = ONE_CLASS
    refused: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    def write(self, image: GivenImage, row: Row, mask: U8 | None, picture: Grey | None = None) -> Row:
        """Write the files of a row; return it for the table, with their paths below the folder (None: not written).

        DICOM segmentations wait for the doubt of all images: `write_segmentation` writes them.
        mask: of the lungs, u8[H,W] in {0,1} as stored, None where there is none. picture: the upright image u8 or
        u16[H,W], if it is in memory; otherwise it is read again.
        """
        files: Row = dict.fromkeys(file_columns(self.settings, self.classes))
        if has_mask(row):
            for kind in self.settings.formats:
                files |= self._write(image, row, kind, mask, picture) if kind != "dicom-seg" else {}
        self.done.append(image.label)
        return {**row, **files, "source_uri": image.label, "message": image.relabel(row["message"])}

    def write_segmentation(self, image: GivenImage, row: Row, max_doubt: float) -> Row:
        """Write the DICOM segmentation of a row that `write` returned; return the row with its path.

        max_doubt: the highest usual doubt of all rows.
        """
        if not has_mask(row):
            return row
        source = {**row, "source_uri": image.record.image_uri, "max_doubt": max_doubt}
        return {**row, **self._write(image, source, "dicom-seg", decode_mask(row), None)}

    def _write(self, image: GivenImage, row: Row, kind: SegmentFormat, mask: U8 | None, picture: Grey | None) -> Row:
        """Write the files of one format; return their paths by column, empty where it was refused."""
        try:
            contents = self._encode(row, kind, mask, picture)
        except ImageError as error:
            if error.code != "not_dicom":  # dicom-seg is for DICOM images only
                self.refused.append(f"no {kind}: {image.relabel(error.message)}")
            return {}
        paths = output_paths(kind, image.name, self.classes)
        for path, content in zip(paths.values(), contents, strict=True):
            storage.write_bytes(storage.join(self.out, path), content)
        return paths

    def _encode(self, row: Row, kind: SegmentFormat, mask: U8 | None, picture: Grey | None) -> list[bytes]:
        """Return the contents of the files of a format.

        Raises:
            ImageError: the row cannot be written in this format.

        """
        settings = ExportSettings(formats=(kind,), include_doubtful=self.settings.include_doubtful)
        if kind == "overlays" and picture is not None:
            return [encode_overlay(row, normalise(picture, "none"), mask, {}, settings.overlay_px)]
        try:
            return encode_row(row, kind, mask, settings)
        except ImageError:
            raise
        except InputError as error:
            raise ImageError("unreadable", str(error)) from None


def decode_mask(row: Row) -> U8 | None:
    """Decode the mask of the lungs of a row; None where it has none."""
    return None if row["mask"] is None else decode_rle(row["mask"], row["height"], row["width"])


def output_paths(kind: SegmentFormat, name: str, classes: Sequence[str]) -> dict[str, str]:
    """Return the paths of the files of a format below the output folder, by column. classes: of the model."""
    return {column: f"{kind}/{name}{suffix}" for column, suffix in files_of(kind, classes).items()}
