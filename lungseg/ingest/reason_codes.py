"""Reason codes of rows: why a file was rejected, failed or repaired."""

import re

from lungseg.schema import USABLE

BETWEEN = " | "  # of several reasons


_CODE = re.compile(r"^([a-z][a-z0-9_]*): ")


def codes_of(reason: str) -> list[str]:
    """Name the codes of a record's reason."""
    return [found[1] for part in reason.split(BETWEEN) if (found := _CODE.match(part))]


def counted_codes(status: str, reason: str) -> list[str]:
    """Name the codes that count for a status: of what is lost, why it is, and not what had been put right before."""
    codes = codes_of(reason)
    return codes if status in USABLE else codes[:1]


def was_repaired(reason: str) -> bool:
    """Whether a picture whose mask cannot be used had been put right itself: its reason says so behind the mask's."""
    return len(codes_of(reason)) > 1
