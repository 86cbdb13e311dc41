"""Every setting of every job: frozen pydantic models, checked when built. The named recipes stand in recipes.py.

Nothing here imports numpy, torch or ray, so that `--help` answers at once.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Protocol = Literal["pooled", "source-to-source", "leave-one-dataset-out"]
OddMasks = Literal["flag", "reject"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Settings(BaseModel):
    """What all settings share: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PreprocessSettings(Settings):
    """How a picture of any size becomes a square of grey values; the same object serves prepare and infer."""

    size: Annotated[int, Field(ge=64, le=4096, multiple_of=16)] = 512
    """side of the square, px"""
    geometry: Literal["pad", "crop"] = "pad"
    """pad: the whole picture, black bars; crop: the short side fills the square, the rest is cut (the reference's)"""
    histogram: Literal["equalize", "clahe", "percentile", "match", "none"] = "equalize"
    """grey-level normalisation, computed at full depth before 8 bits (clahe: at 8 bits)"""
    landmarks: tuple[Annotated[float, Field(ge=0.0, le=255.0)], ...] = ()
    """of match: grey levels that the percentiles of a picture are brought to; learnt by prepare --match-to"""
    classes: tuple[Name, ...] = ("lung",)
    """classes of the masks, background 0 and then 1, 2 ... in this order; where two overlap the later one shows"""

    @model_validator(mode="after")
    def _classes_differ(self) -> Self:
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"preprocess.classes {' '.join(self.classes)}: name one or more, each once")
        return self


class ModelSettings(Settings):
    """DeepLabV3+ and its encoder."""

    encoder: str = "resnet50"
    """any encoder of segmentation-models-pytorch, e.g. resnet50, mobilenet_v2, tu-tf_efficientnet_lite0"""
    weights: str = "imagenet"
    """imagenet, none, or the path of a file with the encoder's weights (.safetensors, .pth)"""


class OptimSettings(Settings):
    """Adam and its schedule."""

    lr: Annotated[float, Field(gt=0.0, le=10.0)] = 1e-4
    """learning rate; the peak of it with one-cycle"""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """decoupled weight decay (AdamW); 0 is plain Adam"""
    schedule: Literal["constant", "one-cycle"] = "constant"
    """the learning rate over the run"""


class LossSettings(Settings):
    """Weights of the two terms, each a mean over images."""

    bce: Annotated[float, Field(ge=0.0)] = 1.0
    """weight of binary cross entropy"""
    dice: Annotated[float, Field(ge=0.0)] = 1.0
    """weight of soft Dice loss"""

    @model_validator(mode="after")
    def _some_term(self) -> Self:
        if self.bce == 0 and self.dice == 0:
            raise ValueError("loss.bce and loss.dice are both 0: give one of them a weight")
        return self


class AugmentSettings(Settings):
    """Random changes to training images, seeded by (seed, epoch, image_id); all zero is none."""

    rotate_deg: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """rotation, uniform in +- this, degrees"""
    scale: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """enlargement, uniform in 1 +- this"""
    shift: Fraction = 0.0
    """translation, uniform in +- this share of the side"""
    gamma: Annotated[float, Field(ge=0.0, le=3.0)] = 0.0
    """grey-level exponent, exp(uniform in +- this)"""
    flip: Fraction = 0.0
    """chance of a left-right flip"""


class LoaderSettings(Settings):
    """How one rank reads its samples."""

    batch: Annotated[int, Field(ge=2)] = 8
    """images a worker and step (2 or more: batch norm has no variance over one)"""
    threads: Positive = 2
    """threads that read and decode ahead of the device, a worker"""
    cache_mib: Annotated[int, Field(ge=0)] = 1024
    """memory for decoded samples, MiB a worker; 704 samples of 512 px take 360"""


class WandbSettings(Settings):
    """Weights & Biases; metrics.jsonl is the truth and this its mirror."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online where a key is found, else offline"""
    project: str = "lungseg"
    """name of the W&B project"""


class JobSettings(Settings):
    """What every job takes."""

    dry_run: Annotated[bool, Field(exclude=True)] = False
    """print the resolved settings as JSON and end"""


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
    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]*$")] = ""
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
    def _one_source(self) -> Self:
        if len([path for path in (self.source, self.images or self.masks, self.listing) if path]) > 1:
            raise ValueError("--source, --images/--masks and --listing name different archives: pass one of them")
        if self.masks and not self.images:
            raise ValueError("--masks without --images: pass the folder of images too")
        return self


class TrainSettings(JobSettings):
    """Prepared data sets -> k-fold runs, each trained with DDP and tested image by image."""

    data: tuple[str, ...] = ()
    """prepared data sets, or folders that hold them"""
    out: str = "runs"
    """where studies go"""
    study: str = "study"
    """name of this study: a folder under out, the group in W&B"""
    protocols: tuple[Protocol, ...] = ("pooled",)
    """pooled: train on all data sets but the fold; source-to-source: train on one, test on its fold and the others;
    leave-one-dataset-out: train on all but one, test on their fold and on the one"""
    folds: Annotated[int, Field(ge=2)] = 5
    """number of folds, by patient"""
    only_folds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """folds to run; all when empty"""
    model: ModelSettings = ModelSettings()
    optim: OptimSettings = OptimSettings()
    loss: LossSettings = LossSettings()
    augment: AugmentSettings = AugmentSettings()
    loader: LoaderSettings = LoaderSettings()
    epochs: Positive = 50
    """passes over the training images"""
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """probability from which a pixel is lung; fixed before testing"""
    seed: Annotated[int, Field(ge=0)] = 0
    """of folds, shuffles, augmentation and new weights"""
    workers: Positive = 1
    """DDP ranks a run"""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """gpu: one for each worker; auto: gpu where the cluster has enough of them"""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """lost workers a run may survive"""
    wandb: WandbSettings = WandbSettings()
    phantoms: Annotated[int, Field(ge=0, le=9999)] = 0
    """when --data is not named: phantoms to draw and train on, in each of two scanner styles"""

    @model_validator(mode="after")
    def _folds_exist(self) -> Self:
        wrong = [fold for fold in self.only_folds if fold >= self.folds]
        if wrong:
            raise ValueError(f"--only-folds {wrong[0]} of {self.folds} folds: pass 0 to {self.folds - 1}")
        if not self.protocols:
            raise ValueError("--protocols is empty: pass pooled, source-to-source, leave-one-dataset-out or some")
        return self


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
    out: str = ""
    """where the report goes; the study's folder when empty"""
    overlays: Annotated[int, Field(ge=0, le=100)] = 12
    """images shown with their masks"""
