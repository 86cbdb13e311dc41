"""Settings of the export job."""

from typing import Annotated, Literal

from pydantic import Field

from lungseg.config.shared import JobSettings, Positive

ExportFormat = Literal["masks", "lung-masks", "class-masks", "overlays", "coco", "dicom-seg", "nnunet"]


class ExportSettings(JobSettings):
    """Export predictions as files for other tools."""

    predictions: str = ""
    """folder that lungseg infer wrote"""
    out: str = "export"
    """output folder, with a subfolder for each format"""
    formats: tuple[ExportFormat, ...] = ("masks",)
    """masks: PNG of both lungs with values 0 and 255 at the size of the original; lung-masks: the same for each lung;
    class-masks: the same for each class of the model; overlays: outlines on the image with a caption; coco:
    annotations.json; dicom-seg: a DICOM segmentation for each DICOM image; nnunet: a dataset of nnU-Net"""
    where: str = ""
    """export only rows that satisfy this condition on their columns, e.g. "dice < 0.9 and dataset == 'shenzhen'\""""
    worst: Annotated[int, Field(ge=0)] = 0
    """export only this many of the selected rows: flagged ones first, then those with the highest doubt; 0: all"""
    include_doubtful: bool = False
    """also write DICOM segmentations of rows whose flags question the image or the mask, or whose doubt is unusual"""
    overlay_px: Positive = 1024
    """largest longer side of an overlay in pixels; smaller images are enlarged to 768 at most"""
