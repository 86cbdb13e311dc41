"""Settings of lungseg adapt."""

from typing import Annotated

from pydantic import Field

from lungseg.config.shared import AllowedCode, JobSettings


class AdaptSettings(JobSettings):
    """Adapt the batch normalization of trained models to prepared images of another hospital; no masks are needed."""

    checkpoint: tuple[str, ...] = ()
    """folders of finished runs or studies; each of their models is adapted"""
    model: AllowedCode = AllowedCode()
    data: tuple[str, ...] = ()
    """folders of prepared datasets; their masks are not used"""
    out: str = "adapted"
    """output folder; each adapted model gets a subfolder with the name of its run"""
    max_images: Annotated[int, Field(ge=8)] = 1000
    """largest number of images, taken evenly from all data; more hardly change the statistics"""
    batch_size: Annotated[int, Field(ge=2)] = 16
    """images per forward pass"""
