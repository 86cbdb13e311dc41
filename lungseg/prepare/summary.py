"""What became of an archive: counted, timed, written as summary.json and shown on the terminal."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lungseg.dataset.duplicates import Pair
from lungseg.schema import STATUSES

Summary = dict[str, Any]


@dataclass
class WrittenTotals:
    """What the tasks did, added up: inputs, those prepared now, seconds of all workers by stage, inputs by status."""

    inputs: int = 0
    now: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, done: dict[str, Any]) -> None:
        """Add what one shard's task said."""
        self.inputs += done["inputs"]
        self.now += 0 if done["kept"] else done["inputs"]
        self.seconds.update(done["seconds"])
        self.counts.update(done["counts"])


def summarise(infos: Sequence[Summary], work: WrittenTotals, pairs: Sequence[Pair], seconds: float) -> Summary:
    """Say what became of every input, per data set, and where the time went."""
    kinds = Counter(pair.kind for pair in pairs)
    busy = sum(work.seconds.values())
    datasets = {
        info["dataset"]: {
            **{name: info[name] for name in ("inputs", "counts", "reasons", "flags", "samples", "with_mask")},
            "shards": len(info["shards"]),
            "bytes": sum(shard["bytes"] for shard in info["shards"]),
        }
        for info in infos
    }
    counts = Counter(dict.fromkeys(STATUSES, 0))
    for info in infos:
        counts.update(info["counts"])
    return {
        "inputs": sum(info["inputs"] for info in infos),
        "counts": dict(counts),
        "datasets": datasets,
        "duplicates": {kind: kinds[kind] for kind in ("exact", "near", "same_patient")},
        "prepared_now": work.now,
        "seconds": round(seconds, 2),
        "images_per_s": round(work.now / seconds, 1) if work.now else None,
        "worker_seconds": {stage: round(took, 2) for stage, took in sorted(work.seconds.items())},
        "worker_share": {stage: round(took / busy, 3) for stage, took in sorted(work.seconds.items())},
    }


def print_summary(summary: Summary, out: str) -> None:
    """Print the summary on standard output: a table of data sets, and what there is to say about inputs."""
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False, width=max(100, Console().width))
    console.print(_datasets(summary))
    reasons = _reasons(summary)
    if reasons.row_count:
        console.print()
        console.print(reasons)
    counts = " + ".join(f"{count} {status}" for status, count in summary["counts"].items())
    console.print()
    found = summary["duplicates"]
    lines = (
        f"{summary['inputs']} inputs = {counts}; every one is in {out}/*/manifest.parquet",
        f"Leakage audit: {found['exact']} exact and {found['near']} near duplicates, {found['same_patient']} pairs of "
        f"one patient, in {out}/duplicates.parquet; folds never part them",
        _time(summary),
    )
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _datasets(summary: Summary) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    heads = ("data set", "inputs", *STATUSES, "samples", "with mask", "tars", "MiB")
    for head in heads:
        table.add_column(head, justify="left" if head == "data set" else "right")
    for name, found in summary["datasets"].items():
        statuses = [found["counts"].get(status, 0) for status in STATUSES]
        figures = (found["inputs"], *statuses, found["samples"], found["with_mask"], found["shards"])
        table.add_row(name, *map(str, figures), f"{found['bytes'] / 2**20:.1f}")
    return table


def _reasons(summary: Summary) -> Table:
    """List repairs and rejections by reason code, and the flags of inputs that were kept."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for head in ("data set", "what became of it", "why"):
        table.add_column(head)
    table.add_column("inputs", justify="right")
    for name, found in summary["datasets"].items():
        for status, codes in found["reasons"].items():
            for code, count in codes.items():
                table.add_row(name, status, code, str(count))
        for code, count in found["flags"].items():
            table.add_row(name, "kept, with a flag", code, str(count))
    return table


def _time(summary: Summary) -> str:
    if not summary["prepared_now"]:
        return f"All was there from an earlier start; {summary['seconds']:.1f} s to see that"
    shares = ", ".join(f"{stage} {share:.0%}" for stage, share in summary["worker_share"].items())
    rate = f"{summary['images_per_s']:.0f} images/s" if summary["images_per_s"] else ""
    return f"{summary['prepared_now']} prepared in {summary['seconds']:.1f} s ({rate}); workers: {shares}"
