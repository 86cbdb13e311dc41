"""Settings of lungseg train."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lungseg.config.augment import AugmentSettings
from lungseg.config.batches import DEFAULT_BATCH_SIZE, global_batch_problem
from lungseg.config.loader import LoaderSettings
from lungseg.config.precision import Precision
from lungseg.config.shared import Count, Fraction, JobSettings, Positive, Settings

Protocol = Literal["pooled", "source-to-source", "leave-one-dataset-out", "all"]
Activation = Literal["sigmoid", "softmax"]


class ModelSettings(Settings):
    """DeepLabV3+ network and its encoder."""

    encoder: str = "resnet50"
    """any encoder of segmentation-models-pytorch, e.g. resnet50, mobilenet_v2, tu-tf_efficientnet_lite0"""
    weights: str = "imagenet"
    """initial encoder weights: imagenet, none, or a file (.safetensors, .pth)"""
    decoder_channels: Positive = 256
    """channels of the decoder; fewer make the network smaller and faster"""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """dropout rate after the spatial pyramid pooling"""
    activation: Activation = "sigmoid"
    """sigmoid: each class on its own, so that classes may overlap; softmax: a pixel belongs to one class at most"""
    custom: str = ""
    """your own network instead of DeepLabV3+, as package.module:Name"""


class OptimSettings(Settings):
    """Optimizer (Adam or AdamW) and learning-rate schedule."""

    lr: Annotated[float, Field(gt=0.0, le=10.0)] = 1e-4
    """learning rate; with a schedule, its peak"""
    scale_lr: Literal["none", "sqrt", "linear"] = "none"
    """multiply the learning rate by (images per step / 8) or its square root, where 8 is the batch of the recipes; a
    constant schedule then starts with a warm-up from the unscaled rate"""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """decoupled weight decay (AdamW); 0 is plain Adam"""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """learning-rate schedule; cosine: linear warm-up, cosine decay; one-cycle: cosine warm-up, cosine decay"""
    warmup: Fraction = 0.1
    """fraction of all steps that the schedule, or a scaled constant rate, uses for warm-up"""
    clip_norm: Annotated[float, Field(ge=0.0)] = 0.0
    """largest gradient norm; 0: no clipping"""
    accumulate_steps: Positive = 1
    """batches per optimizer step (gradient accumulation)"""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """decay per step of the exponential moving average of the weights, which is then tested and saved; 0: none"""
    custom_step: str = ""
    """your own computation of the losses of a batch, as package.module:Name"""


class ComputeSettings(Settings):
    """Precision and execution on the device."""

    precision: Precision = "auto"
    """training precision; auto: bf16 on GPUs that support it, fp16 with loss scaling on others, fp32 on CPUs"""
    batch_norm: Literal["auto", "local", "sync", "frozen"] = "auto"
    """local: statistics per rank; sync: over all ranks; frozen: fixed statistics, for batches of 1; auto: local, but
    sync for a run on several GPUs with fewer than 8 images each, without --min-workers"""
    threads: Count = "auto"
    """threads that a rank computes with on CPUs; auto: its CPUs when the study starts. Part of what defines a run on
    CPUs, because another number changes the last bits of sums, and so the weights"""
    compile: bool = False
    """use torch.compile: slower start, faster steps; needs a C compiler (on CPUs: C++) and Python's headers"""
    deterministic: bool = False
    """bit-identical results on the same GPUs, slower; always the case on CPUs"""
    timeout_s: Annotated[int, Field(ge=10)] = 1800
    """seconds that a rank waits for the others in NCCL or gloo before the run is started again"""


class LossSettings(Settings):
    """Weights of the two loss terms; each term is a mean over images."""

    bce: Annotated[float, Field(ge=0.0)] = 1.0
    """weight of the binary cross-entropy loss"""
    dice: Annotated[float, Field(ge=0.0)] = 1.0
    """weight of the soft Dice loss"""
    custom: str = ""
    """your own loss instead of both terms, as package.module:Name"""

    @model_validator(mode="after")
    def _has_a_loss_term(self) -> Self:
        if self.bce == 0 and self.dice == 0:
            raise ValueError("loss.bce and loss.dice are both 0: give one of them a weight")
        return self


class WandbSettings(Settings):
    """Weights & Biases, a copy of what metrics.jsonl records."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online if an API key is found, else offline"""
    project: str = "lungseg"
    """name of the W&B project"""
    artifact: bool = False
    """upload the last checkpoint of each run as an artifact"""
    images: Annotated[int, Field(ge=0, le=100)] = 0
    """number of held-out images per run to upload with their masks; 0: no image leaves the machine"""


class TrainSettings(JobSettings):
    """Train and test a k-fold study on prepared datasets, each run with distributed data parallel (DDP)."""

    data: tuple[str, ...] = ()
    """folders of prepared datasets"""
    out: str = "runs"
    """output folder of all studies"""
    study: str = "study"
    """name of this study: its subfolder of --out and its group in W&B"""
    protocols: tuple[Protocol, ...] = ("pooled",)
    """pooled: train on all datasets without the held-out fold; source-to-source: train on one dataset, test on its
    held-out fold and on the others; leave-one-dataset-out: train on all datasets but one, test on their held-out fold
    and on that one; all: train on every image and test nothing, for a model to release"""
    folds: Annotated[int, Field(ge=2)] = 5
    """number of folds; all images of a patient are in one fold"""
    folds_from: str = ""
    """table with the fold of each image (folds.csv of a study, CSV or Parquet) or splits_final.json of nnU-Net"""
    only_folds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """held-out folds to run; default: all"""
    train_on: tuple[str, ...] = ()
    """datasets that source-to-source trains on, one per run; default: all"""
    model: ModelSettings = ModelSettings()
    optim: OptimSettings = OptimSettings()
    compute: ComputeSettings = ComputeSettings()
    loss: LossSettings = LossSettings()
    augment: AugmentSettings = AugmentSettings()
    loader: LoaderSettings = LoaderSettings()
    balance_datasets: bool = False
    """an epoch has equally many images of each dataset: all of the smallest one, and as many of each other one, drawn
    anew for every epoch. For datasets of very different sizes; with it, raise --epochs"""
    teacher: str = ""
    """trained model that this one imitates too: an installed name, the folder of a run or study, or an address, as for
    infer --checkpoint. Half of the loss is then the distance to its probabilities; without a mask, all of it"""
    epochs: Positive = 50
    """number of epochs"""
    half_size_epochs: Annotated[int, Field(ge=0)] = 0
    """first epochs that train on images of half the size, four times faster; the rest train at full size, with a
    learning-rate schedule of their own"""
    patience: Annotated[int, Field(ge=0)] = 0
    """stop after this many epochs without a better validation Dice and test the best epoch; 0: off. The fold after the
    held-out one is then used for validation, not for training"""
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """pixels with at least this probability belong to a class; fixed before testing"""
    choose_threshold: bool = False
    """instead of --threshold, choose it for each class on the fold after the held-out one, which is then not used for
    training"""
    test_every: Annotated[int, Field(ge=0)] = 0
    """also measure Dice on the held-out fold and the other datasets every this many epochs, for curves only: nothing is
    chosen by it; 0: only at the end"""
    save_steps: Positive = 1000
    """save a checkpoint every this many steps, and after each epoch"""
    save_minutes: Annotated[float, Field(ge=0.0)] = 10.0
    """also save one when this many minutes have passed since the last, looking every 20 steps; 0: off"""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """seed of the folds: another one puts the images into other folds"""
    seed: Annotated[int, Field(ge=0)] = 0
    """seed of new weights, order of the images and augmentation, which differ in each fold; it does not change which
    image is in which fold"""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """train each run once with each of these seeds, for example 0 1 2; default: only --seed"""
    workers_per_run: Count = 1
    """DDP ranks per run; auto: the available GPUs divided among the runs of the study, 1 without GPUs. A study keeps
    the number it started with, because other ranks give other weights"""
    min_workers: Annotated[int, Field(ge=0)] = 0
    """continue with at least this many ranks when others are lost: same steps, more slowly; 0: wait for all
    --workers-per-run"""
    runs_at_once: Count = "auto"
    """number of runs that train at the same time; auto: as many as fit on the cluster"""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """gpu: one GPU per rank; auto: gpu if the cluster has enough. A study keeps the device it started on"""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """number of worker failures that a run recovers from"""
    rerun: bool = False
    """train runs again that were trained with other code than today's; without it they are kept, with a warning"""
    profile: bool = False
    """record a few steps of each run with torch's profiler, in profile/rank-N.json of its folder"""
    wandb: WandbSettings = WandbSettings()
    phantoms: Annotated[int, Field(ge=0, le=9999)] = 0
    """without --data: train on this many phantoms (synthetic X-rays) in each of two scanner styles"""

    @model_validator(mode="after")
    def _folds_exist(self) -> Self:
        wrong = [fold for fold in self.only_folds if fold >= self.folds]
        if wrong:
            raise ValueError(f"--only-folds {wrong[0]} of {self.folds} folds: pass 0 to {self.folds - 1}")
        if not self.protocols:
            raise ValueError(
                "--protocols is empty: pass one or more of pooled, source-to-source, leave-one-dataset-out, all"
            )
        if "all" in self.protocols and self.validates:
            raise ValueError(
                "--protocols all trains on every image, but --patience and --choose-threshold need a validation fold: "
                "leave them out, or pass --protocols pooled"
            )
        if self.teacher and self.optim.custom_step:
            raise ValueError("--teacher and --optim.custom-step both compute the losses: leave one of them out")
        if self.half_size_epochs > self.epochs:
            raise ValueError(f"--half-size-epochs {self.half_size_epochs} of {self.epochs} epochs: lower it")
        return self

    @property
    def training_seeds(self) -> tuple[int, ...]:
        """Seeds that each run is trained with, in ascending order."""
        return tuple(sorted(set(self.seeds))) or (self.seed,)

    @property
    def planned_world_size(self) -> int:
        """Number of ranks that a run is planned with."""
        assert self.workers_per_run != "auto", "the pipeline puts a number in its place"
        return self.workers_per_run

    @property
    def may_lose_ranks(self) -> bool:
        """Whether a run goes on with fewer ranks than planned."""
        return self.min_workers > 0 and self.min_workers != self.workers_per_run

    @property
    def validates(self) -> bool:
        """Whether a fold is used for validation."""
        return bool(self.patience) or self.choose_threshold

    @property
    def min_batch_size(self) -> int:
        """Images that a rank needs per batch: batch norm has no variance over one, unless ranks share it."""
        return 1 if self.compute.batch_norm in ("frozen", "sync") else 2

    @property
    def rank_batch_size(self) -> int:
        """Images per rank and batch."""
        if self.loader.batch_size != "auto":
            return self.loader.batch_size
        if not self.loader.global_batch_size:
            return DEFAULT_BATCH_SIZE
        return self.loader.global_batch_size // (self.planned_world_size * self.optim.accumulate_steps)

    @property
    def step_size(self) -> int:
        """Images per optimizer step."""
        return self.rank_batch_size * self.planned_world_size * self.optim.accumulate_steps

    @property
    def min_images_per_rank(self) -> int:
        """Training images that each rank needs."""
        return self.min_batch_size * (self.optim.accumulate_steps if self.loader.global_batch_size else 1)

    def batch_problem(self) -> str:
        """Say why the batches cannot be planned, and what to pass; "" if they can."""
        total, size = self.loader.global_batch_size, self.loader.batch_size
        if size != "auto" and size < self.min_batch_size:
            return (
                "--loader.batch-size 1: batch norm has no variance over one image: pass 2 or more, or "
                "--compute.batch-norm frozen"
            )
        if not total or self.workers_per_run == "auto":
            return ""
        if size != "auto" and self.step_size != total:
            return (
                f"--loader.batch-size {size} makes {self.step_size} images a step, --loader.global-batch-size says "
                f"{total}: pass --loader.batch-size auto, or --loader.global-batch-size 0"
            )
        return global_batch_problem(total, self.planned_world_size, self.optim.accumulate_steps, self.min_batch_size)

    @model_validator(mode="after")
    def _batches_and_ranks_fit(self) -> Self:
        if problem := self.batch_problem():
            raise ValueError(problem)
        if self.workers_per_run != "auto" and self.min_workers > self.workers_per_run:
            raise ValueError(
                f"--min-workers {self.min_workers}: more than --workers-per-run {self.workers_per_run}: lower it"
            )
        if self.may_lose_ranks and self.compute.batch_norm == "sync":
            raise ValueError(
                f"--min-workers {self.min_workers} with --compute.batch-norm sync: fewer ranks cannot compute the "
                "statistics of all: pass --compute.batch-norm local or frozen, or leave out --min-workers"
            )
        if self.validates and self.folds < 3:
            raise ValueError(
                f"--folds {self.folds}: one is held out, one for validation, none is left to train on: pass 3 or more"
            )
        return self
