"""Compare the masks of two versions of a model on synthetic X-rays."""

from lungseg.imaging import phantom
from lungseg.imaging.geometry import prepare_image
from lungseg.inference.ensemble import Predictor
from lungseg.inference.items import PredictOptions
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.checkpoint_classes import threshold_column

_PHANTOMS = 4


def changed_share(first: Checkpoint, second: Checkpoint, custom_network: str = "") -> float:
    """Return the share of pixels, 0 to 1, that are in the masks of one model only, over synthetic X-rays."""
    settings = first.preprocess
    images = [phantom.draw(seed, phantom.STYLES[seed % 2], settings.size)[0] for seed in range(_PHANTOMS)]
    squares = [prepare_image(image, settings)[0] for image in images]
    options = PredictOptions(custom_network=custom_network, precision="fp32")
    masks = [Predictor(model, options).probabilities(squares) >= threshold_column(model) for model in (first, second)]
    return float((masks[0] != masks[1]).mean())
