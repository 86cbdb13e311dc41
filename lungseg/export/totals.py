"""Count what an export wrote, what it could not write, and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lungseg import storage
from lungseg.arrays import Row
from lungseg.plurals import counted

_SEVERAL = ("lung-masks", "class-masks")  # formats with several files an image
_HELD_BACK = ("flagged", "doubtful")


@dataclass
class ExportTotals:
    """Sums over the parts of an export.

    counts: `rows`, `selected`, files by format, and `refused` files. refused: files that could not be written, by
    format and reason code. emptied: DICOM segmentations by element that is empty because the image's value is invalid.
    notes: a sentence for each file with a problem.
    """

    counts: Counter[str] = field(default_factory=Counter)
    refused: dict[str, Counter[str]] = field(default_factory=dict)
    emptied: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, result: Row) -> None:
        """Add the result of one part."""
        self.counts.update(result["counts"])
        self.emptied.update(result["emptied"])
        self.notes += result["notes"]
        for kind, reasons in result["refused"].items():
            self.refused.setdefault(kind, Counter()).update(reasons)

    def describe_written(self, formats: Sequence[str]) -> str:
        """Describe what was written: files, or images for formats with several files an image."""
        return ", ".join(
            f"{name} of {counted(self.counts[name], 'image')}" if name in _SEVERAL else f"{self.counts[name]} {name}"
            for name in formats
        )

    def lines(self) -> list[str]:
        """Describe what was not written, one line a format, and what was left empty."""
        rows = counted(self.counts["selected"], "row")
        lines = [
            f"not exported as {kind}: {reasons.total()} of {rows} ({_describe(reasons)})"
            for kind, reasons in self.refused.items()
        ]
        held_back = Counter({code: sum(reasons[code] for reasons in self.refused.values()) for code in _HELD_BACK})
        if held_back.total():
            lines.append(
                f"held back: {counted(held_back.total(), 'row')} ({_describe(+held_back)}); look at them; to export "
                "them anyway, pass --include-doubtful and another --out"
            )
        if self.emptied:
            lines.append(
                "elements left empty in DICOM segmentations, because their values in the images are invalid: "
                f"{_describe(self.emptied)}"
            )
        return lines

    def record(self, out: str) -> None:
        """Add the counts to the export.json of the output folder."""
        path = storage.join(out, "export.json")
        refused = {kind: dict(reasons.most_common()) for kind, reasons in self.refused.items()}
        counts: dict[str, Any] = {"counts": dict(self.counts), "refused": refused, "emptied": dict(self.emptied)}
        storage.write_json(path, {**storage.read_json(path), **counts})


def _describe(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())
