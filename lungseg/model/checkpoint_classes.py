"""The classes of a checkpoint, and what is stored for each of them."""

from lungseg.config.class_names import ONE_CLASS
from lungseg.errors import CheckpointError
from lungseg.model.checkpoint import Checkpoint, stored_result, stored_threshold


def require_one_class(checkpoint: Checkpoint) -> None:
    """Check that a model has the one class that `infer` and `segment` can use so far.

    Raises:
        CheckpointError: it has several classes, or one that is not the lungs.

    """
    classes = checkpoint.preprocess.classes
    if classes != ONE_CLASS:
        raise CheckpointError(
            f"{checkpoint.folder}: a model of {', '.join(classes)}: lungseg trains and tests such models, but segments "
            "lungs only so far: pass a model of the class lung"
        )


def stored_thresholds(checkpoint: Checkpoint) -> dict[str, float]:
    """Return the threshold of each class: the one chosen by the run, else that of its settings."""
    chosen = stored_result(checkpoint).get("thresholds") or checkpoint.config.get("thresholds", {})
    threshold = stored_threshold(checkpoint)
    return {name: float(chosen.get(name, threshold)) for name in checkpoint.preprocess.classes}
