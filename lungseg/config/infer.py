"""Settings of lungseg infer."""

import re
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lungseg.config.backend import Backend
from lungseg.config.precision import Precision
from lungseg.config.prepare import ListingColumns
from lungseg.config.shared import AllowedCode, Count, Fraction, JobSettings, Positive, Settings

Tta = Literal["none", "flip"]


class PostprocessSettings(Settings):
    """Steps applied to a predicted mask, in this order; the row of the image lists what they changed.

    The defaults lower HD95 and not Dice on held-out images (docs/results.md).
    """

    crf: bool = False
    """before the other steps, refine the borders with a conditional random field on the grey values of the image"""
    specks: Fraction = 0.0
    """remove connected components smaller than this fraction of the mask; 0: none"""
    lungs: bool = True
    """keep the largest connected component on each side of the midline and remove the others; of the classes
    right_lung, left_lung and heart keep the largest one, of other classes all"""
    holes: bool = True
    """fill holes, but not in classes other than lungs and heart"""
    smooth: Annotated[float, Field(ge=0.0, le=0.05)] = 0.0
    """radius of the disk that smooths the border, as a fraction of the longer side of the image; 0: no smoothing"""


class InferSettings(JobSettings):
    """Segment images with one or more trained models; write one Parquet row per image, with its mask."""

    archive: str = ""
    """a folder of images (any layout that lungseg prepare reads; masks optional), one image, a listing, a manifest, or
    prepared data"""
    pattern: str = ""
    """use only images of the folder whose relative path matches, e.g. *_PA.png or 2019/*"""
    columns: ListingColumns = ListingColumns()
    checkpoint: tuple[str, ...] = ()
    """folder of a finished run or study; a study predicts with the mean of its models, but its own images only with
    models not trained on them; several folders: the mean of all their models"""
    model: AllowedCode = AllowedCode()
    out: str = "predictions"
    """output folder; its subfolder rows/ holds the Parquet parts"""
    batch_size: Positive = 16
    """images per forward pass"""
    part_size: Positive = 64
    """images per Parquet part, the unit of writing and resuming"""
    workers: Count = "auto"
    """number of actors that hold the model; auto: one per GPU, or one per CPU without GPUs"""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """device that the model runs on"""
    backend: Backend = "auto"
    """library that computes the network: auto is torch on GPUs, and on CPUs the fastest of those installed whose masks
    are those of torch; onnxruntime and openvino compute on CPUs"""
    gpus_per_actor: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """share of a GPU that each actor takes; 0.5: two actors share a GPU, so that one computes while the other waits"""
    precision: Precision = "auto"
    """auto: bf16 or fp16 on GPUs, fp32 on CPUs"""
    tta: Tta = "none"
    """test-time augmentation; flip: mean of the predictions of the image and its mirror image, in twice the time"""
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """pixels with at least this probability are lung, or of their class; default: that of the models for each class
    (0.5, or chosen in training)"""
    postprocess: PostprocessSettings = PostprocessSettings()
    patient_key: str = ""
    """file with the secret key that turns patient ids of DICOM files and listings into pseudonyms (or set
    LUNGSEG_PATIENT_KEY); without it, rows of DICOM files have no patient_id"""
    max_failed: str = "100%"
    """stop when more images than this are rejected or failed: a percentage of all, e.g. 1%, or a number"""
    profile: bool = False
    """record a few batches of each actor with torch's profiler, in the subfolder profile/ of --out"""
    verify: bool = False
    """do not predict: recompute all values in --out from the stored masks and list differences"""

    @model_validator(mode="after")
    def _max_failed_is_a_percentage_or_number(self) -> Self:
        if not re.fullmatch(r"\d+|\d+(\.\d+)?%", self.max_failed):
            raise ValueError(
                f"--max-failed {self.max_failed!r}: expected a percentage such as 1% or a number such as 500"
            )
        if self.max_failed.endswith("%") and Decimal(self.max_failed[:-1]) > 100:
            raise ValueError(f"--max-failed {self.max_failed!r}: expected 100% at most")
        return self

    def allowed_failures(self, images: int) -> int:
        """Return how many of this many images may fail before the job stops."""
        if self.max_failed.endswith("%"):
            return int(images * Decimal(self.max_failed[:-1]) / 100)
        return int(self.max_failed)
