"""Settings of jobs/infer.py."""

import re
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lungseg.config.precision import Precision
from lungseg.config.prepare import ListingColumns
from lungseg.config.shared import Count, Fraction, JobSettings, Positive, Settings

Tta = Literal["none", "flip"]


class PostprocessSettings(Settings):
    """What is done to a predicted mask, in this order; what it changed is in the image's row.

    What is on by default lowers HD95 and not Dice on images that the models did not see (README, Results).
    """

    specks: Fraction = 0.0
    """drop components smaller than this share of the mask"""
    lungs: bool = True
    """on each side of the midline keep the component that has most there, drop the others"""
    holes: bool = True
    """fill what is enclosed"""
    smooth: Annotated[float, Field(ge=0.0, le=0.05)] = 0.0
    """radius of the disk that smooths the border, as a share of the picture's longer side; 0: no smoothing"""


class InferSettings(JobSettings):
    """An archive or prepared data + one trained model, or several -> one Parquet row an image, with its mask."""

    archive: str = ""
    """images (as prepare's --source reads them, masks optional), one image, a listing, a manifest, or prepared data"""
    pattern: str = ""
    """of a folder of images only those whose path below it fits, as *_PA.png or 2019/*; * is anything"""
    columns: ListingColumns = ListingColumns()
    """of a listing"""
    checkpoint: tuple[str, ...] = ()
    """folder of a finished run, or of a study: the mean of its models, for images of its data of those that never saw
    them; several folders: all their models"""
    out: str = "predictions"
    """where the part files go"""
    batch_size: Positive = 16
    """images a forward pass"""
    part_size: Positive = 64
    """images a part file, which is written and resumed as a whole"""
    workers: Count = "auto"
    """actors that hold the model; auto: one for each GPU, or for each CPU where there is none"""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """where the model runs"""
    precision: Precision = "auto"
    """auto: bf16 or fp16 on GPUs, fp32 on CPUs"""
    tta: Tta = "none"
    """flip: the mean of the prediction and that of the mirrored picture, at twice the time"""
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """probability from which a pixel is lung; when not given the models' own: 0.5, or what their training chose"""
    postprocess: PostprocessSettings = PostprocessSettings()
    patient_key: str = ""
    """file with the secret that turns DICOM patient ids into pseudonyms, as for prepare; without it rows carry none"""
    max_failed: str = "100%"
    """stop once more images than this are rejected or failed: a share of all, as 1%, or a number"""
    verify: bool = False
    """predict nothing: recompute every figure in --out from the masks stored there and name what differs"""

    @model_validator(mode="after")
    def _budget_is_a_share_or_a_number(self) -> Self:
        if not re.fullmatch(r"\d+|\d+(\.\d+)?%", self.max_failed):
            raise ValueError(f"--max-failed {self.max_failed!r}: expected a share as 1% or a number as 500")
        if self.max_failed.endswith("%") and Decimal(self.max_failed[:-1]) > 100:
            raise ValueError(f"--max-failed {self.max_failed!r}: expected 100% at most")
        return self

    def allowed_failures(self, images: int) -> int:
        """Say how many of so many images may fail before the job stops."""
        if self.max_failed.endswith("%"):
            return int(images * Decimal(self.max_failed[:-1]) / 100)
        return int(self.max_failed)
