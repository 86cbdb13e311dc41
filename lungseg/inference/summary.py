"""Results of an inference: predictions.json, or two lines on the terminal for a single image."""

import json
import logging
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config.class_names import LUNGS
from lungseg.inference.class_summary import ClassTotals
from lungseg.inference.cpu_tasks import InferenceJob
from lungseg.inference.job_backend import recorded_backend
from lungseg.ingest.reason_codes import QUESTIONABLE, REGISTRY
from lungseg.plurals import counted
from lungseg.predictions.parts import StatusCounts, part_files
from lungseg.predictions.ranking import questions
from lungseg.schema import USABLE
from lungseg.storage.files import digest_bytes
from lungseg.versions import versions

logger = logging.getLogger(__name__)

_LIBRARIES = ("torch", "ray", "numpy", "opencv-python-headless", "pyarrow", "segmentation-models-pytorch")
_READERS = 8  # threads that read parts; reads from a bucket mostly wait
_MIN_FOR_ADVICE = 6  # images: fewer are looked at anyway
_STAGES = ("open", "predict", "finish")


@dataclass
class StageTimes:
    """Time that this run spent.

    images: predicted by this run. seconds: by stage, the sum of all workers. busy: seconds in which the actors
    predicted, their sum. first, last: start of the first and end of the last batch.
    """

    device: str = "cpu"
    actors: int = 1
    images: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    busy: float = 0.0
    began: float = field(default_factory=time.time)
    first: float | None = None
    last: float = 0.0

    def add(self, images: int, times: str) -> None:
        """Add the `images` and `times` that `finish_part` returned for a part."""
        seconds = json.loads(times)
        began, ended = seconds.pop("busy")
        self.images += images
        self.seconds.update(seconds)
        self.busy += ended - began
        self.first = began if self.first is None else min(self.first, began)
        self.last = max(self.last, ended)

    @property
    def device_wait_share(self) -> float | None:
        """Share of the time from the first to the last batch in which the devices waited; None before a batch ended."""
        span = self.actors * (self.last - self.first) if self.first is not None else 0.0
        return round(max(0.0, 1 - self.busy / span), 3) if span > 0 else None

    def as_json(self) -> dict[str, Any]:
        """Return the speed of each stage and the share of time in which the devices waited.

        start_s: from the start to the first batch. images_per_second: of one worker in this stage. hours_per_million:
        CPU hours and device hours per million images.
        """
        if self.first is None or not self.images:
            return {"device": self.device, "actors": self.actors, "images": 0}
        cpu = self.seconds["open"] + self.seconds["finish"]
        return {
            "device": self.device,
            "actors": self.actors,
            "images": self.images,
            "start_s": round(self.first - self.began, 2),
            "images_per_second": {name: round(self.images / max(self.seconds[name], 1e-9), 2) for name in _STAGES},
            "worker_seconds": {name: round(self.seconds[name], 2) for name in _STAGES},
            "device_wait_share": self.device_wait_share,
            "hours_per_million": {
                "cpu_tasks": round(cpu / self.images * 1e6 / 3600, 1),
                "devices": round(self.seconds["predict"] / self.images * 1e6 / 3600, 1),
            },
        }


def write_summary(
    job: InferenceJob,
    counts: StatusCounts,
    kept: StatusCounts,
    times: StageTimes,
    seconds: float,
    totals: ClassTotals | None = None,
) -> None:
    """Write predictions.json: settings, versions, counts, times, and rows, bytes and digest of every part.

    kept: counts of the rows of earlier runs. seconds: of this run. totals: of the classes. Settings, versions and speed
    stay those of the last run that processed an image, if this one finds all rows finished.
    """
    classes = totals.as_json() if totals else []
    backend = recorded_backend(job.out) or "torch"
    path = storage.join(job.out, "predictions.json")
    processed_now = counts.statuses.total() - kept.statuses.total()
    run = {
        "settings": job.settings.model_dump(mode="json"),
        "versions": versions(dict.fromkeys((*_LIBRARIES, backend))),
        "seconds": round(seconds, 2),
        "images_per_second": round(processed_now / seconds, 2) if processed_now else None,
        "stages": times.as_json(),
    }
    if not processed_now and storage.exists(path):
        written = storage.read_json(path)
        run = {name: written.get(name, value) for name, value in run.items()}
    with ThreadPoolExecutor(_READERS) as pool:
        parts = list(pool.map(_describe_part, part_files(job.out)))
    storage.write_json(
        path,
        {
            "images": counts.statuses.total(),
            "counts": counts.counts(),
            "codes": counts.code_counts(),
            "flagged": counts.flagged,
            "flags": dict(counts.flags.most_common()),
            **({"classes": classes} if classes else {}),
            "model_name": job.model_name,
            "model": job.model_digest,
            "backend": backend,
            "processed_now": processed_now,
            "predicted_now": counts.predicted() - kept.predicted(),
            **run,
            "parts": parts,
        },
    )


def _describe_part(path: str) -> dict[str, Any]:
    content = storage.read_bytes(path)
    rows = storage.count_rows(path, content)
    return {"name": storage.name_of(path), "rows": rows, "bytes": len(content), "sha256": digest_bytes(content)}


def log_counts(out: str, counts: StatusCounts, kept: StatusCounts, seconds: float) -> None:
    """Log the rows by status, how many this run predicted, and why others have no mask or are flagged.

    kept: counts of the rows of earlier runs. seconds: of this run.
    """
    statuses = ", ".join(f"{count} {status}" for status, count in counts.counts().items())
    logger.info(
        "%s: %s (%s); this run predicted %d in %.1f s",
        *(out, counted(counts.statuses.total(), "row"), statuses, counts.predicted() - kept.predicted(), seconds),
    )
    if counts.not_predicted():
        logger.info("images without a mask: %s", counts.describe_not_predicted())
        for number, example in enumerate(counts.examples):
            logger.info("  %s%s", "" if number else "first: ", example)
    if counts.flagged:
        are_flagged = counted(counts.flagged, "image is flagged", "images are flagged")
        logger.info("%s: %s", are_flagged, counts.describe_flagged())
    if _are_mostly_poor(counts):
        logger.warning("over a third of the images are flagged%s; look at the overlays first", _explain_flags(counts))


def _are_mostly_poor(counts: StatusCounts) -> bool:
    """Return whether over a third of the masks have a flag of the mask or of what the image shows."""
    questioned = sum(count for flag, count in counts.flags.items() if flag in QUESTIONABLE)  # some have several
    return counts.predicted() >= _MIN_FOR_ADVICE and 3 * min(counts.flagged, questioned) > counts.predicted()


def _explain_flags(counts: StatusCounts) -> str:
    """Name the flags that over a third of the masks have, and say what flags of so many masks may mean."""
    questioned = [(flag, count) for flag, count in counts.flags.most_common() if flag in QUESTIONABLE]
    frequent = [flag for flag, count in questioned if 3 * count > counts.predicted()]
    if frequent and not any(flag.startswith("lungs_") for flag in frequent):
        return "".join(f", {flag}: {REGISTRY[flag].meaning.rstrip('.')}" for flag in frequent)
    return ": the model may be trained too little, or for other images"


def print_image_summary(out: str) -> None:
    """Print the result of a single image, and the path of its part."""
    (path,) = part_files(out)
    (row,) = storage.read_table(path).to_pylist()
    name = storage.name_of(row["source_uri"])
    if row["status"] not in USABLE:
        sys.stdout.write(f"{name}: {row['status']} ({', '.join(row['codes'])}): {row['message']}\n{path}\n")
        return
    advice = ": look at the image" if questions(row) else ""
    flags = f"flags: {', '.join(row['flags'])}{advice}\n" if row["flags"] else ""
    lines = [f"{name}: {text}\n" for text in [*_describe_lungs(row), *_describe_classes(row)]]
    sys.stdout.write(f"{''.join(lines)}{flags}{path}\n")


def _describe_lungs(row: Row) -> list[str]:
    if row["area_px"] is None:  # no lungs among the classes
        return []
    lungs = " and ".join(f"{side} {_lung_area(row, side)}" for side in ("right", "left"))
    score = "" if row["doubt"] is None else f", doubt {row['doubt']:.3f}"
    size = f"{row['width']} x {row['height']} px"
    return [f"lungs {_share(row, row['area_px'])} of {size} ({lungs}){score}{_dice(row)}"]


def _describe_classes(row: Row) -> list[str]:
    """Return one line for each class that `_describe_lungs` leaves out."""
    has_lungs = row["area_px"] is not None
    others = (one for one in row["classes"] or () if not (has_lungs and one["class"] in LUNGS))
    return [f"{one['class']} {_share(row, one['area_px'])}{_dice(one)}" for one in others]


def _dice(values: Row) -> str:
    return "" if values["dice"] is None else f", Dice {values['dice']:.4f}"


def _share(row: Row, area_px: int) -> str:
    return f"{area_px / (row['height'] * row['width']):.1%}"


def _lung_area(row: Row, side: str) -> str:
    area = row[f"{side}_lung_cm2"]
    return _share(row, row[f"{side}_lung_px"]) + ("" if area is None else f", {area:.0f} cm2")
