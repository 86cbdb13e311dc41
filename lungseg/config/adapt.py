"""Settings of jobs/adapt.py."""

from typing import Annotated

from pydantic import Field

from lungseg.config.shared import JobSettings


class AdaptSettings(JobSettings):
    """Trained models + prepared pictures of another hospital, no masks -> the same models, fitted to those pictures."""

    checkpoint: tuple[str, ...] = ()
    """folder of a finished run, or of a study: each of its models is adapted; several folders: all their models"""
    data: tuple[str, ...] = ()
    """prepared data: a data set or a folder of several; their masks are not looked at"""
    out: str = "adapted"
    """where the adapted models go, a folder each under its run's name"""
    max_images: Annotated[int, Field(ge=8)] = 1000
    """pictures at most, evenly from the whole data: more hardly change a mean"""
    batch_size: Annotated[int, Field(ge=2)] = 16
    """pictures a forward pass"""
