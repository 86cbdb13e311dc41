"""Settings of jobs/report.py and jobs/export.py."""

from typing import Annotated

from pydantic import Field

from lungseg.config.shared import JobSettings


class ReportSettings(JobSettings):
    """Runs and predictions -> a table on the terminal, report.json and report.html."""

    study: str = ""
    """folder of a study"""
    predictions: str = ""
    """folder that infer wrote; may be empty"""
    compare_with: tuple[str, ...] = ()
    """other studies to compare it with, image by image: the same data sets and folds, other settings or preparation"""
    out: str = ""
    """where the report goes; the study's folder when empty"""
    overlays: Annotated[int, Field(ge=0, le=100)] = 12
    """images shown with their masks"""
