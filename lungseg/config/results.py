"""Settings of jobs/infer.py and jobs/report.py."""

from typing import Annotated, Literal

from pydantic import Field

from lungseg.config.shared import JobSettings, Positive


class InferSettings(JobSettings):
    """An archive or prepared data + one trained model -> one Parquet row an image, with its mask."""

    archive: str = ""
    """images (as prepare's --source reads them, masks optional), or prepared data sets"""
    checkpoint: str = ""
    """folder of a finished run, or of its checkpoint"""
    out: str = "predictions"
    """where the part files go"""
    batch: Positive = 16
    """images a forward pass"""
    part: Positive = 64
    """images a part file, which is written and resumed as a whole"""
    workers: Annotated[int, Field(ge=0)] = 0
    """actors that hold the model; 0: one for each GPU, or for each CPU where there is none"""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """where the model runs"""
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """probability from which a pixel is lung"""
    patient_key: str = ""
    """file with the secret that turns DICOM patient ids into pseudonyms, as for prepare; without it rows carry none"""
    postprocess: Literal["none", "lungs"] = "none"
    """lungs: fill holes, keep the two largest components"""


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
