"""Job metrics for Prometheus, in addition to those of Ray: throughput, device waiting, rows by status, loss."""

import ray
from ray.util.metrics import Gauge

_METRICS = {
    "lungseg_images_per_second": "images per second of this process or job",
    "lungseg_rank_images_per_second": "training images per second of this rank alone",
    "lungseg_peak_device_mib": "most memory of tensors on the GPU of this rank in this epoch, MiB",
    "lungseg_device_wait_share": "share of time that the device waits for data, 0 to 1",
    "lungseg_rows": "finished images by status: ok, repaired, rejected, failed",
    "lungseg_loss": "training loss of the last step on this rank",
}
_TAGS = ("stage", "run", "rank", "status")


class Gauges:
    """Gauges of one process. Does nothing without Ray."""

    def __init__(self, stage: str, run: str = "", rank: int = 0) -> None:
        self._tags = {"stage": stage, "run": run, "rank": str(rank), "status": ""}
        self._gauges = (
            {name: Gauge(name, description, tag_keys=_TAGS) for name, description in _METRICS.items()}
            if ray.is_initialized()
            else {}
        )

    def set(self, name: str, value: float, status: str = "") -> None:
        """Set the gauge `lungseg_<name>`."""
        gauge = self._gauges.get(f"lungseg_{name}")
        if gauge is not None:
            gauge.set(value, {**self._tags, "status": status})
