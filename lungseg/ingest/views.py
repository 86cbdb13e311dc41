"""Classify the views that a listing names."""

from lungseg.imaging.dicom.wording import ViewKind, classify_view


def classify_listed_view(text: str) -> ViewKind:
    """Classify the view of a listing; a single `L` is lateral there, as in PadChest."""
    return "lateral" if text.strip().upper() == "L" else classify_view([text]).kind
