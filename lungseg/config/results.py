"""Settings of jobs/report.py and jobs/export.py."""

from typing import Annotated, Literal

from pydantic import Field

from lungseg.config.shared import JobSettings, Positive

ExportFormat = Literal["masks", "overlays", "coco", "dicom-seg"]


class ReportSettings(JobSettings):
    """Runs and predictions -> a table on the terminal, report.json and report.html."""

    study: str = ""
    """folder of a study"""
    predictions: str = ""
    """folder that infer wrote; may be empty"""
    against: tuple[str, ...] = ()
    """other studies to compare it with, image by image: the same data sets and folds, other settings or preparation"""
    out: str = ""
    """where the report goes; the study's folder when empty"""
    overlays: Annotated[int, Field(ge=0, le=100)] = 12
    """images shown with their masks"""


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
