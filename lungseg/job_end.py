"""Log what a job lost and the next command. docs/inference.md explains the losses."""

import logging
import shlex
from collections.abc import Mapping
from typing import Literal

from lungseg.errors import LungsegError
from lungseg.plurals import counted

logger = logging.getLogger(__name__)

Loss = Literal[
    "rejected",
    "failed",
    "dropped_masks",
    "ignored_masks",
    "refused_references",
    "skipped_datasets",
    "refused_exports",
    "missing_overlays",
    "failed_runs",
]

_NOUNS: dict[Loss, tuple[str, str]] = {
    "rejected": ("rejected image", "rejected images"),
    "failed": ("failed image", "failed images"),
    "dropped_masks": ("mask without an image", "masks without an image"),
    "ignored_masks": ("ignored mask", "ignored masks"),
    "refused_references": ("refused reference mask", "refused reference masks"),
    "skipped_datasets": ("dataset left out", "datasets left out"),
    "refused_exports": ("refused export", "refused exports"),
    "missing_overlays": ("missing overlay", "missing overlays"),
    "failed_runs": ("run not finished", "runs not finished"),
}


def describe_losses(losses: Mapping[Loss, int]) -> str:
    """List what was lost, as in `2 rejected images, 1 refused export`; "" for nothing."""
    return ", ".join(counted(losses[kind], *nouns) for kind, nouns in _NOUNS.items() if losses.get(kind))


def end_job(losses: Mapping[Loss, int], strict: bool, *next_commands: str) -> None:
    """Log what a job lost and the commands that may come next.

    Raises:
        LungsegError: something was lost, and the job is strict.

    """
    lost = describe_losses(losses)
    if lost and strict:
        raise LungsegError(f"lost: {lost}: --strict allows no loss; everything else is written")
    if lost:
        logger.warning("lost: %s", lost)
    if next_commands:
        logger.info("next: %s", ", or ".join(next_commands))


def command(job: str, *words: str) -> str:
    """Return the command line of a job, for a shell."""
    return f"lungseg {job} {shlex.join(words)}"
