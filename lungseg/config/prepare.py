"""Settings of lungseg prepare."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lungseg.config.shared import JobSettings, Positive, PreprocessSettings, Settings

OddMasks = Literal["flag", "reject"]


class ListingColumns(Settings):
    """Column names of a listing. A column named here must exist; columns with the default names are optional."""

    image: str = "image"
    """path or URI of the image, relative to the folder of the listing"""
    masks: tuple[str, ...] = ()
    """one column per mask file: COLUMN for lungs (left and right may be two columns), or CLASS=COLUMN; default: mask,
    and with several classes the columns of their names"""
    patient_id: str = ""
    """patient id; default: patient_id"""
    dataset: str = ""
    """hospital or dataset; default: dataset"""
    finding: str = ""
    """label that stratifies the folds; default: finding"""
    age: str = ""
    """age in years; default: age"""
    sex: str = ""
    """sex, F or M in any spelling; default: sex"""
    view: str = ""
    """view, such as PA or AP; lateral images are rejected; default: view"""


class PrepareSettings(JobSettings):
    """Check an archive of X-rays and masks and write it as WebDataset tars with a manifest and an index."""

    source: str = ""
    """archive in a known layout (Montgomery, Kaggle, images/ + masks/), or a folder of such archives"""
    images: str = ""
    """instead of --source: any folder of images"""
    masks: str = ""
    """with --images: folder of the masks, with the same file names (the suffix _mask is allowed)"""
    dataset: str = ""
    """name of the dataset (letters, digits, _ and -); default: the name of the folder or of the
    listing"""
    out: str = "data/prepared"
    """output folder; each prepared dataset gets a subfolder"""
    preprocess: PreprocessSettings = PreprocessSettings()
    listing: str = ""
    """instead of --source: a CSV or Parquet file with one row per image"""
    columns: ListingColumns = ListingColumns()
    match_to: str = ""
    """with --preprocess.histogram match: image, or folder of images, that all grey levels are matched to"""
    odd_masks: OddMasks = "flag"
    """keep an image with an unusual mask and flag it in the manifest, or reject it"""
    patient_key: str = ""
    """file with the secret key that turns patient ids of DICOM files and listings into pseudonyms (or set
    LUNGSEG_PATIENT_KEY); DICOM needs it here, as folds are divided by patient"""
    shard_mib: Positive = 32
    """approximate size of a tar, MiB"""
    images_per_shard: Positive = 256
    """largest number of images per tar"""
    verify: bool = False
    """do not prepare: check every byte of the datasets in --out and list errors"""
    phantoms: Annotated[int, Field(ge=0, le=9999)] = 0
    """without an archive: draw this many phantoms (synthetic X-rays) in each of two scanner styles"""

    @model_validator(mode="after")
    def _dataset_is_a_folders_name(self) -> Self:
        if not re.fullmatch(r"[A-Za-z0-9_-]*", self.dataset):
            raise ValueError(f"--dataset {self.dataset!r}: expected A-Z, a-z, 0-9, _ and - only: pass such a name")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if len([path for path in (self.source, self.images or self.masks, self.listing) if path]) > 1:
            raise ValueError("--source, --images/--masks and --listing name different archives: pass one of them")
        if self.masks and not self.images:
            raise ValueError("--masks without --images: pass the folder of images too")
        if self.columns != ListingColumns() and not self.listing:
            raise ValueError("--columns.* without --listing: pass the file whose columns they name")
        return self
