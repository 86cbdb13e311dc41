"""Settings of the augmentation of training images."""

from typing import Annotated

from pydantic import Field

from lungseg.config.shared import Fraction, Settings


class AugmentSettings(Settings):
    """Random augmentation of training images, seeded by (seed, epoch, image_id); 0 turns a setting off."""

    rotate_deg: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """rotation in degrees, uniform in +- this"""
    scale: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """scale factor, uniform in 1 +- this"""
    shift: Fraction = 0.0
    """translation, uniform in +- this fraction of the side"""
    elastic: Annotated[float, Field(ge=0.0, le=0.03)] = 0.0
    """elastic deformation, displacements up to about this fraction of the side"""
    flip: Fraction = 0.0
    """probability of a left-right flip"""
    gamma: Annotated[float, Field(ge=0.0, le=3.0)] = 0.0
    """gamma exponent, exp(uniform in +- this)"""
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """contrast factor around mid-grey, uniform in 1 +- this"""
    brightness: Fraction = 0.0
    """brightness offset, uniform in +- this fraction of the full range"""
    jitter: Annotated[float, Field(ge=0.0, le=3.0)] = 0.0
    """random monotonic grey-level curve of 9 linear pieces; slope factors exp(uniform in +- this)"""
    shadow: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """soft blobs and rib-like bands that brighten or darken by up to this fraction, less in bright areas"""
    blur: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Gaussian blur, standard deviation in pixels uniform from 0 to this"""
    noise: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Gaussian noise, standard deviation uniform from 0 to this fraction of the full range"""
    collimate: Fraction = 0.0
    """probability of one to four black or grey borders (collimation), never over the lung mask"""
    opacity: Fraction = 0.0
    """probability of painted opacities inside the lungs: effusions, consolidations, haze"""
    gas: Fraction = 0.0
    """probability of painted gas below a lung, as in the stomach"""
    custom: str = ""
    """your own augmentation, applied last, as package.module:Name"""
