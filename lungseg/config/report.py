"""Settings of lungseg report."""

from typing import Annotated

from pydantic import Field

from lungseg.config.shared import JobSettings


class ReportSettings(JobSettings):
    """Report a study and its predictions as tables on the terminal, report.json and report.html."""

    study: str = ""
    """folder of a study, OUT/STUDY of lungseg train"""
    predictions: str = ""
    """folder that lungseg infer wrote; optional"""
    compare_with: tuple[str, ...] = ()
    """other studies to compare with, image by image: same datasets and folds, other settings or preparation"""
    out: str = ""
    """output folder; default: the folder of the study"""
    overlays: Annotated[int, Field(ge=0, le=100)] = 12
    """number of images to show with their masks"""
