"""Settings of lungseg report."""

from typing import Annotated

from pydantic import Field

from lungseg.config.shared import JobSettings


class ReportSettings(JobSettings):
    """Report a study, predictions or both as tables on the terminal, report.json and report.html."""

    study: str = ""
    """folder of a study, OUT/STUDY of lungseg train"""
    predictions: str = ""
    """folder that lungseg infer wrote; optional"""
    compare_with: tuple[str, ...] = ()
    """other studies to compare with, image by image: same datasets and folds, other settings or preparation"""
    out: str = ""
    """output folder; default: the folder of the study, or of the predictions"""
    worst: Annotated[int, Field(ge=0, le=100)] = 0
    """show this many images, the most doubtful first; 0: images of low, median and high Dice, if a study and reference
    masks are there"""
    overlays: Annotated[int, Field(ge=0, le=100)] = 12
    """number of images to show with their masks"""
    min_area: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """share of the predicted lungs from which a predicted class, such as opacity, counts as detected; share of the
    image for the lungs and the heart, and for models without lungs"""
    normals: tuple[str, ...] = ()
    """prepared datasets whose images with the finding `normal` count as images without opacity in the predictions"""
