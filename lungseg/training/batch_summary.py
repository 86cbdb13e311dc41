"""One line about the batches and the learning rate of a study, shown before it trains."""

from collections.abc import Sequence

from lungseg.config import TrainSettings
from lungseg.plurals import counted
from lungseg.training.loader import plan_epoch
from lungseg.training.train_step import peak_learning_rate


def describe_batches(settings: TrainSettings, training_images: Sequence[int]) -> str:
    """Describe the batches of runs with these numbers of training images.

    As `8 ranks x 8 = 64 images a step, 12 steps an epoch, peak learning rate 1e-4, not scaled`.
    """
    ranks, accumulated = settings.planned_world_size, settings.optim.accumulate_steps
    factors = counted(ranks, "rank"), str(settings.rank_batch_size), f"{accumulated} accumulated batches"
    product = " x ".join(factors if accumulated > 1 else factors[:2])
    steps = sorted({_steps(settings, images) for images in training_images})
    epoch = counted(steps[0], "step") if len(steps) == 1 else f"{steps[0]} to {steps[-1]} steps"
    peak = peak_learning_rate(settings)
    scaling = {"none": "not scaled", "sqrt": "scaled by the square root", "linear": "scaled linearly"}
    scaling_text = scaling[settings.optim.scale_lr]
    if settings.optim.scale_lr != "none":
        scaling_text += f" from {_number(settings.optim.lr)} for 8 images"
    return (
        f"{product} = {settings.step_size} images a step, {epoch} an epoch, peak learning rate {_number(peak)}, "
        f"{scaling_text}"
    )


def _steps(settings: TrainSettings, images: int) -> int:
    steps = plan_epoch(settings, images, (0, 1, settings.planned_world_size), (0, 0))
    return sum(step.is_last_in_step for step in steps)


def _number(rate: float) -> str:
    """Write a rate as 1e-4 or 2.83e-4."""
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
