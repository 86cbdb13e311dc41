"""Summary of a preparation: inputs by status and reason code, duplicates, and where the time went."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lungseg.dataset.duplicates import describe_duplicates
from lungseg.ingest.lost_inputs import lost_inputs
from lungseg.job_end import Loss
from lungseg.schema import STATUSES

Summary = dict[str, Any]


@dataclass
class WrittenTotals:
    """Totals over finished tasks.

    inputs: all; prepared: inputs that were not kept from an earlier run; seconds: of all workers, by stage; counts:
    inputs by status.
    """

    inputs: int = 0
    prepared: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, shard: dict[str, Any]) -> None:
        """Add the numbers that `write_shard` returned for one shard."""
        self.inputs += shard["inputs"]
        self.prepared += 0 if shard["kept"] else shard["inputs"]
        self.seconds.update(shard["seconds"])
        self.counts.update(shard["counts"])


def summarise(
    infos: Sequence[Summary],
    totals: WrittenTotals,
    duplicates: dict[str, int],
    seconds: float,
    errors: Sequence[str] = (),
) -> Summary:
    """Build the content of summary.json.

    duplicates: of `count_duplicates`. errors: one for each dataset without a usable image, which is left out.
    """
    busy = sum(totals.seconds.values())
    datasets = {
        info["dataset"]: {
            **{name: info[name] for name in ("inputs", "counts", "codes", "flags", "samples", "with_mask")},
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
        "errors": list(errors),
        "duplicates": duplicates,
        "prepared_now": totals.prepared,
        "seconds": round(seconds, 2),
        "images_per_second": round(totals.prepared / seconds, 1) if totals.prepared else None,
        "worker_seconds": {stage: round(elapsed, 2) for stage, elapsed in sorted(totals.seconds.items())},
        "worker_share": {stage: round(elapsed / busy, 3) for stage, elapsed in sorted(totals.seconds.items())},
    }


def summary_losses(summary: Summary) -> dict[Loss, int]:
    """Count what was lost: unusable inputs, masks without an image, and datasets without a usable image."""
    codes = [
        (status, code, count)
        for info in summary["datasets"].values()
        for status, counts in info["codes"].items()
        for code, count in counts.items()
    ]
    return {**lost_inputs(summary["counts"], codes), "skipped_datasets": len(summary["errors"])}


def print_summary(summary: Summary, out: str) -> None:
    """Print the summary on standard output: tables of datasets and of reason codes, then totals."""
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False, width=max(100, Console().width))
    console.print(_dataset_table(summary))
    codes = _code_table(summary)
    if codes.row_count:
        console.print()
        console.print(codes)
    counts = " + ".join(f"{count} {status}" for status, count in summary["counts"].items())
    console.print()
    lines = (
        f"{summary['inputs']} inputs = {counts}; {out}/*/manifest.parquet lists each of them",
        describe_duplicates(summary["duplicates"], out),
        _time_line(summary),
    )
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _dataset_table(summary: Summary) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    heads = ("dataset", "inputs", *STATUSES, "samples", "with mask", "tars", "MiB")
    for head in heads:
        table.add_column(head, justify="left" if head == "dataset" else "right")
    for name, info in summary["datasets"].items():
        statuses = [info["counts"].get(status, 0) for status in STATUSES]
        figures = (info["inputs"], *statuses, info["samples"], info["with_mask"], info["shards"])
        table.add_row(name, *map(str, figures), f"{info['bytes'] / 2**20:.1f}")
    return table


def _code_table(summary: Summary) -> Table:
    """Count repairs and rejections by reason code, and flags of inputs that were kept."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for head in ("dataset", "result", "code"):
        table.add_column(head)
    table.add_column("inputs", justify="right")
    for name, info in summary["datasets"].items():
        for status, codes in info["codes"].items():
            for code, count in codes.items():
                table.add_row(name, status, code, str(count))
        for code, count in info["flags"].items():
            table.add_row(name, "kept, flagged", code, str(count))
    return table


def _time_line(summary: Summary) -> str:
    if not summary["prepared_now"]:
        return f"All inputs were prepared by an earlier run; checked in {summary['seconds']:.1f} s"
    shares = ", ".join(f"{stage} {share:.0%}" for stage, share in summary["worker_share"].items())
    rate = f"{summary['images_per_second']:.0f} images/s" if summary["images_per_second"] else ""
    return f"{summary['prepared_now']} prepared in {summary['seconds']:.1f} s ({rate}); workers: {shares}"
