"""Settings of the export job."""

from typing import Literal

from lungseg.config.shared import JobSettings, Positive

ExportFormat = Literal["masks", "overlays", "coco", "dicom-seg"]


class ExportSettings(JobSettings):
    """Predictions -> files that other tools open."""

    predictions: str = ""
    """folder that infer wrote"""
    out: str = "export"
    """where the files go, a folder a format"""
    formats: tuple[ExportFormat, ...] = ("masks",)
    """masks: PNG, 0 and 255, native size; overlays: the outline on the picture; coco: annotations.json; dicom-seg: a
    DICOM segmentation for each DICOM image"""
    where: str = ""
    """only rows for which this holds, as "dice < 0.9 and dataset == 'shenzhen'"; names are the columns"""
    overlay_px: Positive = 1024
    """longer side of an overlay; smaller pictures keep their size"""
