"""Distillation: a network also learns the probabilities of a trained model, its teacher.

The loss of an image is the mean of two: that with its masks, and the binary cross entropy with the probabilities of the
teacher for the same augmented pixels. An image without a mask has the second one alone. Source: Hinton, Vinyals and
Dean, arXiv 1503.02531, with temperature 1.
"""

import logging
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lungseg.config import TrainSettings
from lungseg.dataset.catalog import PreparedDataset
from lungseg.errors import SettingsError
from lungseg.model import checkpoint, sources
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.checkpoint_io import load_model
from lungseg.model.network import LungNetwork
from lungseg.plurals import counted
from lungseg.training.study_classes import study_classes
from lungseg.training.train_step import Learner

logger = logging.getLogger(__name__)


def find_teacher(address: str) -> list[Checkpoint]:
    """Find the models of --teacher; several are an ensemble.

    Raises:
        LungsegError: a model cannot be used.

    """
    models = checkpoint.find_all(sources.resolve(address))
    checkpoint.require_custom_code(models, "")
    for model in models:
        checkpoint.require_tensors(model)
        if model.preprocess != models[0].preprocess:
            raise SettingsError(
                f"--teacher {address}: its models have different classes or preprocessing: pass one of them"
            )
    return models


def check_teacher(settings: TrainSettings, data: Sequence[PreparedDataset]) -> None:
    """Check that the teacher fits the data, and warn if it was trained on images of the study.

    Raises:
        LungsegError: it cannot be used.

    """
    models, classes = find_teacher(settings.teacher), study_classes(data)
    own, theirs = data[0].preprocess, models[0].preprocess
    if missing := [name for name in classes if name not in theirs.classes]:
        raise SettingsError(
            f"--teacher {settings.teacher} has no class {missing[0]}, but the data have: pass a model of "
            f"{', '.join(classes)}"
        )
    free = {"classes": own.classes, "size": own.size}  # images are resized for the teacher
    if differences := theirs.model_copy(update=free).differences(own):
        raise SettingsError(
            f"--teacher {settings.teacher} was trained with other preprocessing than {data[0].folder} ({differences}): "
            "pass another model, or prepare the data with its settings"
        )
    known = pa.array(sorted(frozenset[str]().union(*map(checkpoint.trained_on, models))), pa.string())
    digests = [pc.cast(dataset.index.column("pixel_digest"), pa.string()) for dataset in data]
    seen = sum(pc.sum(pc.is_in(own, value_set=known)).as_py() or 0 for own in digests)
    if seen:
        logger.warning(
            "--teacher %s was trained on %d of %s of this study: where they are held out, the Dice is too high",
            *(settings.teacher, seen, counted(sum(map(len, digests)), "image")),
        )


class Teacher:
    """The mean probability of trained models."""

    def __init__(self, models: Sequence[Checkpoint], classes: Sequence[str], device: torch.device) -> None:
        """Load the models. classes: of the student, in the order of its masks; all are classes of the models."""
        self._order = [models[0].preprocess.classes.index(name) for name in classes]
        self._size = models[0].preprocess.size
        self._networks = [load_model(model).to(device).eval() for model in models]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Predict images f32[B,1,S,S] of any size S to probabilities f32[B,K,S,S]."""
        inputs = _resized(images, self._size)
        probabilities = torch.stack([torch.sigmoid(network(inputs).float()) for network in self._networks]).mean(0)
        return _resized(probabilities[:, self._order], images.shape[-1])


class DistillingLearner(Learner):
    """A network in training that learns from masks and from a teacher."""

    def __init__(self, model: LungNetwork, device: torch.device, settings: TrainSettings, teacher: Teacher) -> None:
        super().__init__(model, device, settings)
        self._teacher = teacher

    def _losses(self, network: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        """Predict images f32[B,1,S,S] and return the losses f32[B], in fp32.

        masks: f32[B,K,S,S] of K classes, NaN where a class is not annotated.
        """
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
            logits = network(images)
            soft = self._teacher(images)
        logits = logits.float()
        distances = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").flatten(1).mean(1)
        has_mask = ~masks[:, :, 0, 0].isnan().all(1)
        # NaN would make the gradients NaN. A loss of several classes leaves it out; for one class it becomes 0 here.
        own = self._loss(logits, masks.nan_to_num() if masks.shape[1] == 1 else masks)
        return torch.where(has_mask, (own + distances) / 2, distances)


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images.float(), size=(size, size), mode="bilinear", align_corners=False)
