"""What an inference came to: predictions.json, and two lines on the terminal for a single picture."""

import json
import logging
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from lungseg import storage
from lungseg.inference.cpu_tasks import InferenceJob
from lungseg.predictions.parts import StatusCounts, part_files
from lungseg.schema import USABLE
from lungseg.storage.files import digest_bytes
from lungseg.versions import versions

logger = logging.getLogger(__name__)

_LIBRARIES = ("torch", "ray", "numpy", "opencv-python-headless", "pyarrow", "segmentation-models-pytorch")
_READERS = 8  # threads that read parts; in a bucket, reading is waiting
_STAGES = ("open", "predict", "finish")


@dataclass
class StageTimes:
    """What was done now: images, seconds by stage summed over all workers, and when the actors were at work."""

    device: str = "cpu"
    actors: int = 1
    images: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    busy: float = 0.0
    began: float = field(default_factory=time.time)
    first: float | None = None
    last: float = 0.0

    def add(self, images: int, times: str) -> None:
        """Add what `finish_part` says of a part."""
        found = json.loads(times)
        began, ended = found.pop("busy")
        self.images += images
        self.seconds.update(found)
        self.busy += ended - began
        self.first = began if self.first is None else min(self.first, began)
        self.last = max(self.last, ended)

    def as_json(self) -> dict[str, Any]:
        """Say how fast each stage is alone and how long the model's devices waited; None where nothing was done.

        start_s: until the first batch. images_per_second: of one worker in a stage. device_idle_share: of the time
        from the first batch to the last. hours_per_million: of CPU tasks, and of devices while they are at work.
        """
        if self.first is None or not self.images:
            return {"device": self.device, "actors": self.actors, "images": 0}
        span = self.actors * (self.last - self.first)
        cpu = self.seconds["open"] + self.seconds["finish"]
        return {
            "device": self.device,
            "actors": self.actors,
            "images": self.images,
            "start_s": round(self.first - self.began, 2),
            "images_per_second": {name: round(self.images / max(self.seconds[name], 1e-9), 2) for name in _STAGES},
            "worker_seconds": {name: round(self.seconds[name], 2) for name in _STAGES},
            "device_idle_share": round(max(0.0, 1 - self.busy / span), 3) if span else None,
            "hours_per_million": {
                "cpu_tasks": round(cpu / self.images * 1e6 / 3600, 1),
                "devices": round(self.seconds["predict"] / self.images * 1e6 / 3600, 1),
            },
        }


def write_summary(job: InferenceJob, total: StatusCounts, times: StageTimes, now: dict[str, Any]) -> None:
    """Write predictions.json: settings, versions, counts, times, and every part's rows, bytes and digest."""
    with ThreadPoolExecutor(_READERS) as pool:
        parts = list(pool.map(_tell, part_files(job.out)))
    seconds = now["seconds"]
    storage.write_json(
        storage.join(job.out, "predictions.json"),
        {
            "images": now["images"],
            "counts": total.counts(),
            "codes": total.code_counts(),
            "model": job.model_digest,
            "settings": job.settings.model_dump(mode="json"),
            "versions": versions(_LIBRARIES),
            "predicted_now": now["predicted_now"],
            "seconds": round(seconds, 2),
            "images_per_second": round(now["predicted_now"] / seconds, 2) if now["predicted_now"] else None,
            "stages": times.as_json(),
            "parts": parts,
        },
    )


def _tell(path: str) -> dict[str, Any]:
    """Say what a part's file is, for whoever checks it later."""
    content = storage.read_bytes(path)
    rows = storage.count_rows(path, content)
    return {"name": storage.name_of(path), "rows": rows, "bytes": len(content), "sha256": digest_bytes(content)}


def print_image_summary(out: str) -> None:
    """Tell of a single picture in two lines."""
    (path,) = part_files(out)
    (row,) = storage.read_table(path).to_pylist()
    name = storage.name_of(row["source_uri"])
    if row["status"] not in USABLE:
        sys.stdout.write(f"{name}: {row['status']} ({row['codes'][0]}), {row['message']}\n{path}\n")
        return
    size = row["height"] * row["width"]
    lungs = " and ".join(f"{side} {row[f'{side}_lung_px'] / size:.1%}" for side in ("right", "left"))
    sure = "" if row["mean_probability"] is None else f", mean probability {row['mean_probability']:.3f}"
    dice = "" if row["dice"] is None else f", Dice {row['dice']:.4f}"
    sys.stdout.write(
        f"{name}: lungs {row['area_px'] / size:.1%} of {row['width']} x {row['height']} px "
        f"({lungs}){sure}{dice}\n{path}\n"
    )
