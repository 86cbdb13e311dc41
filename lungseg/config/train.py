"""Settings of jobs/train.py."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lungseg.config.precision import Precision
from lungseg.config.shared import Count, Fraction, JobSettings, Positive, Settings

Protocol = Literal["pooled", "source-to-source", "leave-one-dataset-out"]


class ModelSettings(Settings):
    """DeepLabV3+ and its encoder."""

    encoder: str = "resnet50"
    """any encoder of segmentation-models-pytorch, e.g. resnet50, mobilenet_v2, tu-tf_efficientnet_lite0"""
    weights: str = "imagenet"
    """imagenet, none, or the path of a file with the encoder's weights (.safetensors, .pth)"""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """share of the pooled pyramid's values that a training step leaves out"""


class OptimSettings(Settings):
    """Adam and its schedule."""

    lr: Annotated[float, Field(gt=0.0, le=10.0)] = 1e-4
    """learning rate; the peak of it where there is a schedule"""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """decoupled weight decay (AdamW); 0 is plain Adam"""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """of the learning rate; cosine: up in a line, down in a half cosine; one-cycle: up and down in half cosines"""
    warmup: Fraction = 0.1
    """share of the run's steps in which the learning rate of a schedule rises"""
    clip_norm: Annotated[float, Field(ge=0.0)] = 0.0
    """largest norm of a step's gradient; 0 clips nothing"""
    accumulate_steps: Positive = 1
    """batches a step: a larger batch than the memory holds"""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """decay a step of the moving average of the weights, which is then what is tested and saved; 0: none"""


class ComputeSettings(Settings):
    """How a device computes."""

    precision: Precision = "auto"
    """of training; auto: bf16 on GPUs that have it, fp16 with scaling on others, fp32 on CPUs"""
    batch_norm: Literal["auto", "local", "sync", "frozen"] = "auto"
    """whose images batch norm sees; auto: sync over several GPUs, else local; frozen: none, for batches of 1"""
    compile: bool = False
    """torch.compile the network: minutes at the start, faster steps"""
    deterministic: bool = False
    """the same bits from the same GPUs, slower; on CPUs it is always so"""


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
    elastic: Annotated[float, Field(ge=0.0, le=0.03)] = 0.0
    """smooth bending, displacements up to about this share of the side; from 0.05 on a picture would fold"""
    flip: Fraction = 0.0
    """chance of a left-right flip"""
    gamma: Annotated[float, Field(ge=0.0, le=3.0)] = 0.0
    """grey-level exponent, exp(uniform in +- this)"""
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """contrast about mid-grey, a factor uniform in 1 +- this"""
    brightness: Fraction = 0.0
    """added grey, uniform in +- this share of the full range"""
    jitter: Annotated[float, Field(ge=0.0, le=3.0)] = 0.0
    """random rising grey curve of 9 straight pieces, the slope of each a factor exp(uniform in +- this)"""
    shadow: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """soft blobs and rib-like bands, brighter and darker by up to this share of a dark grey, less of a bright one"""
    blur: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Gaussian blur, standard deviation uniform from 0 to this, px"""
    noise: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Gaussian noise, standard deviation uniform from 0 to this share of the full range"""
    collimate: Fraction = 0.0
    """chance of black or grey borders, one to four, never over the lungs of the mask"""


class LoaderSettings(Settings):
    """How one rank reads its samples."""

    batch_size: Positive = 8
    """images a worker and batch (1 only with --compute.batch-norm frozen)"""
    threads: Count = "auto"
    """threads that read and decode ahead of the device, a worker; auto: 2 on CPUs, a worker's CPUs beside a GPU"""
    cache_mib: Annotated[int, Field(ge=0)] = 1024
    """memory for decoded samples, MiB a worker; 704 samples of 512 px take 360"""
    disk_mib: Annotated[int, Field(ge=0)] = 100_000
    """disk for tars that lie in a bucket, MiB a machine, in ~/.cache/lungseg; each is fetched once"""

    @property
    def reader_threads(self) -> int:
        """Threads, as a number."""
        return 2 if self.threads == "auto" else self.threads


class WandbSettings(Settings):
    """Weights & Biases; metrics.jsonl is the truth and this its mirror."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online where a key is found, else offline"""
    project: str = "lungseg"
    """name of the W&B project"""
    artifact: bool = False
    """give W&B each run's last checkpoint too, as an artifact"""
    images: Annotated[int, Field(ge=0, le=100)] = 0
    """held-out images of each run that W&B gets, with their masks; 0: no picture leaves the machine"""


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
    train_on: tuple[str, ...] = ()
    """data sets that source-to-source trains on, one a run; all when empty"""
    model: ModelSettings = ModelSettings()
    optim: OptimSettings = OptimSettings()
    compute: ComputeSettings = ComputeSettings()
    loss: LossSettings = LossSettings()
    augment: AugmentSettings = AugmentSettings()
    loader: LoaderSettings = LoaderSettings()
    epochs: Positive = 50
    """passes over the training images"""
    patience: Annotated[int, Field(ge=0)] = 0
    """stop after so many epochs without a better validation Dice, and test the best one; 0: never. The fold after the
    held-out one is then not trained on but validated on"""
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """probability from which a pixel is lung; fixed before testing"""
    choose_threshold: bool = False
    """instead, choose it on the fold after the held-out one, which is then not trained on"""
    save_steps: Positive = 1000
    """save also within an epoch, every so many steps"""
    seed: Annotated[int, Field(ge=0)] = 0
    """of folds, shuffles, augmentation and new weights"""
    workers_per_run: Count = 1
    """DDP ranks a run; auto: the GPUs that are there, shared out among the study's runs, and 1 without GPUs. They are
    part of the training, as a step takes `batch` images of each: a study keeps those that it began with"""
    min_workers: Annotated[int, Field(ge=0)] = 0
    """ranks that a run goes on with when others are lost and no node takes their place: the same steps by fewer, more
    slowly; 0: as many as --workers-per-run, it waits"""
    runs_at_once: Count = "auto"
    """runs that train at the same time; auto: as many as the cluster has room for"""
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

    @property
    def planned_world_size(self) -> int:
        """Ranks that a run is planned with."""
        assert self.workers_per_run != "auto", "the pipeline puts a number in its place"
        return self.workers_per_run

    @property
    def validates(self) -> bool:
        """Whether a fold is kept for choices that the held-out one must not make."""
        return bool(self.patience) or self.choose_threshold

    @property
    def min_batch_size(self) -> int:
        """Images that a rank needs for a step: batch norm has no variance over one."""
        return 1 if self.compute.batch_norm == "frozen" else 2

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.loader.batch_size < self.min_batch_size:
            raise ValueError(
                "--loader.batch-size 1: batch norm has no variance over one image: pass 2 or more, or "
                "--compute.batch-norm frozen"
            )
        if self.workers_per_run != "auto" and self.min_workers > self.workers_per_run:
            raise ValueError(f"--min-workers {self.min_workers}: more than --workers-per-run {self.workers_per_run}")
        if self.validates and self.folds < 3:
            raise ValueError(
                f"--folds {self.folds}: one is held out and one validated on, none is left: pass 3 or more"
            )
        return self
