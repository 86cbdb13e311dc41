"""Compare a mask with its reference at native size."""

from lungseg.arrays import Row
from lungseg.imaging.run_lengths import Runs
from lungseg.metrics import segmentation
from lungseg.schema import Counts

COMPARED = ("iou", "dice", "pixel_accuracy", "hd95_px", "assd_px")


def compare(mask: Runs, reference: Runs | None) -> Row:
    """Return the metrics in COMPARED of a mask and its reference; None without a reference."""
    if reference is None:
        return dict.fromkeys(COMPARED)
    tp = mask.count_common(reference)
    fp, fn = mask.area - tp, reference.area - tp
    counts = Counts(tp, fp, fn, mask.shape[0] * mask.shape[1] - tp - fp - fn)
    hd95, assd = segmentation.surface_distances(mask.to_mask(), reference.to_mask())
    values = (segmentation.iou(counts), segmentation.dice(counts), segmentation.pixel_accuracy(counts), hd95, assd)
    return dict(zip(COMPARED, values, strict=True))
