"""What a cluster's monitoring sees of a job, beside Ray's own metrics: rates, waiting, rows by status."""

import ray
from ray.util.metrics import Gauge

_METRICS = {
    "lungseg_images_per_second": "images that this process, or the job, works off a second",
    "lungseg_device_wait_share": "share of the time in which the device waits for data, 0 to 1",
    "lungseg_rows": "images that are done, by what became of them: ok, repaired, rejected, failed",
    "lungseg_loss": "training loss of the last step on this rank",
}
_TAGS = ("stage", "run", "rank", "status")


class Gauges:
    """The gauges of one process; without Ray, nothing."""

    def __init__(self, stage: str, run: str = "", rank: int = 0) -> None:
        self._tags = {"stage": stage, "run": run, "rank": str(rank), "status": ""}
        self._gauges = (
            {name: Gauge(name, said, tag_keys=_TAGS) for name, said in _METRICS.items()} if ray.is_initialized() else {}
        )

    def set(self, name: str, value: float, status: str = "") -> None:
        """Show a figure until the next one; `lungseg_` stands before its name."""
        gauge = self._gauges.get(f"lungseg_{name}")
        if gauge is not None:
            gauge.set(value, {**self._tags, "status": status})
