"""Classify the views that a listing names."""

import functools

from lungseg.imaging.dicom.wording import ViewKind, classify_view


@functools.lru_cache(1024)  # a listing of millions of rows has few different texts
def classify_listed_view(text: str) -> ViewKind:
    """Classify the view of a listing; a single `L` is lateral there, as in PadChest."""
    return "lateral" if text.strip().upper() == "L" else classify_view([text]).kind
