"""Settings of jobs/prepare.py."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lungseg.config.shared import JobSettings, Positive, PreprocessSettings, Settings

OddMasks = Literal["flag", "reject"]


class ListingColumns(Settings):
    """Which columns of a listing hold what; a column that is named here must be there, the others may be."""

    image: str = "image"
    """path or URI of the image; relative to the listing's folder"""
    masks: tuple[str, ...] = ()
    """mask files, a column each: COLUMN for lungs (left and right may be two), or CLASS=COLUMN; mask when empty"""
    patient_id: str = ""
    """who it is of; patient_id when empty"""
    dataset: str = ""
    """hospital or data set; dataset when empty"""
    finding: str = ""
    """what the folds are stratified by; finding when empty"""
    age: str = ""
    """years; age when empty"""
    sex: str = ""
    """F or M, in any spelling; sex when empty"""
    view: str = ""
    """PA, AP ...; a lateral one is rejected; view when empty"""


class PrepareSettings(JobSettings):
    """An archive of X-rays and masks -> checked manifest -> WebDataset tars with an index."""

    source: str = ""
    """archive: a known layout (Montgomery, Kaggle, images/ + masks/) or a folder of such folders"""
    images: str = ""
    """instead of --source: any folder of images"""
    masks: str = ""
    """with --images: the folder of their masks, same file names (an ending _mask is understood)"""
    dataset: str = ""
    """name of the data set, of letters, digits, _ and -; the folder's name when empty"""
    out: str = "data/prepared"
    """where the prepared data sets go, a folder each"""
    preprocess: PreprocessSettings = PreprocessSettings()
    listing: str = ""
    """instead of --source: a CSV or Parquet file with a row for each image"""
    columns: ListingColumns = ListingColumns()
    match_to: str = ""
    """with histogram match: the picture, or the folder of pictures, whose grey levels all are brought to"""
    odd_masks: OddMasks = "flag"
    """what becomes of an image whose mask is odd but possible: kept with a flag in the manifest, or rejected"""
    patient_key: str = ""
    """file with the secret that turns DICOM patient ids into pseudonyms (or set LUNGSEG_PATIENT_KEY)"""
    shard_mib: Positive = 32
    """a tar holds about this much, MiB"""
    images_per_shard: Positive = 256
    """and at most so many inputs"""
    verify: bool = False
    """prepare nothing: check every byte of the data sets in --out and name what is wrong"""
    phantoms: Annotated[int, Field(ge=0, le=9999)] = 0
    """with neither --source nor --images: draw this many phantoms in each of two scanner styles"""

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
