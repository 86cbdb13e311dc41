"""Count the inputs that a job could not use, from the statuses and reason codes of its rows."""

from collections.abc import Iterable, Mapping

from lungseg.ingest.reason_codes import OTHER_MASK, REGISTRY, UNMATCHED_MASK
from lungseg.job_end import Loss
from lungseg.schema import USABLE

_REFUSED = ("rejected", "failed")


def lost_inputs(statuses: Mapping[str, int], codes: Iterable[tuple[str, str, int]]) -> dict[Loss, int]:
    """Count rejected and failed images, masks that no image uses, and reference masks that were not used.

    statuses: inputs by status. codes: inputs by status and code; of an unusable input only the first code.
    """
    counts = list(codes)
    dropped = sum(count for status, code, count in counts if status in _REFUSED and code == UNMATCHED_MASK)
    ignored = sum(count for status, code, count in counts if status in _REFUSED and code == OTHER_MASK)
    refused = sum(count for status, code, count in counts if status in USABLE and REGISTRY[code].status in _REFUSED)
    return {
        "rejected": statuses.get("rejected", 0) - dropped - ignored,
        "failed": statuses.get("failed", 0),
        "dropped_masks": dropped,
        "ignored_masks": ignored,
        "refused_references": refused,
    }
