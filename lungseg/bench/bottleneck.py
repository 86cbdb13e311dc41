"""Find the stage that limits training, and the one that limits inference."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lungseg.bench import inference_stages as inference, training_stages as training
from lungseg.bench.timing import Path, StageTimes

Lane = dict[str, float]
"""Times in ms an image of the stages that work one after the other."""

_REST = "check and prepare it"

_ADVICE: Mapping[str, str] = {
    training.READ: "keep the data on a local disk, or raise --loader.disk-mib (copies of tars from a bucket)",
    training.DECODE: "raise --loader.cache-mib, so that decoded samples stay in memory",
    training.AUGMENT: "raise --loader.processes and give each rank more CPUs, or turn off --augment.elastic",
    training.TRANSFER: "raise --loader.batch-size",
    inference.READ_FILE: "keep the archive on faster storage, or in the region of the cluster",
    inference.DECODE_FILE: "add CPU nodes, or lower --workers so that fewer GPUs wait",
    _REST: "add CPU nodes, or lower --workers so that fewer GPUs wait",
    inference.FINISH: "add CPU nodes, or lower --workers so that fewer GPUs wait",
}
_DEVICE_ADVICE: Mapping[tuple[str, str], str] = {
    (training.STEP, "cpu"): "pass --device gpu where there is one, or a lighter --model.encoder",
    (training.STEP, "cuda"): "raise --loader.batch-size until the memory is full, then pass --compute.compile",
    (inference.PREDICT, "cpu"): "pass --device gpu where there is one, or train a lighter --model.encoder",
    (inference.PREDICT, "cuda"): "raise --batch-size, or add GPUs with --workers",
}


@dataclass(frozen=True)
class Bottleneck:
    """The stage to widen. ms: its time an image, out of total_ms. images_per_second: of all stages, estimated."""

    path: Path
    stage: str
    ms: float
    total_ms: float
    images_per_second: float
    advice: str

    def as_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)

    def __str__(self) -> str:
        """Return one sentence."""
        rate = f"{self.images_per_second:.1f}" if self.images_per_second >= 10 else f"{self.images_per_second:.2g}"
        return (
            f"{self.path.capitalize()}, about {rate} images/s: the stage to widen is "
            f"'{self.stage}' ({self.ms:.1f} of {self.total_ms:.1f} ms an image): {self.advice}."
        )


def find_bottlenecks(
    times: Sequence[StageTimes], device_type: str, cores: float, is_cached: bool = False
) -> list[Bottleneck]:
    """Find the stage to widen in training and in inference.

    The stages on the CPU and those on the device form two lanes. On a GPU both work at the same time, and the slower
    lane limits; on CPUs they share the cores, and their times add up. Within a lane, the largest part is named.
    cores: CPU cores for each device. is_cached: the decoded samples of all data stay in memory, so that after the first
    epoch none is read or decoded.
    """
    best = {entry.stage.name: entry.best for entry in times}
    return [
        _widen("training", _training_lanes(best, is_cached), device_type),
        _widen("inference", _inference_lanes(best, cores), device_type),
    ]


def _training_lanes(best: Mapping[str, float], is_cached: bool) -> tuple[Lane, Lane]:
    loaded = min(ms for name, ms in best.items() if name.startswith(training.LOAD))
    samples = {name: best[name] for name in (training.READ, training.DECODE, training.AUGMENT)}
    samples = _scaled(samples, loaded)
    if is_cached:
        samples = {training.AUGMENT: samples[training.AUGMENT]}
    transfer = min(best[training.TRANSFER], best[training.STEP])
    step = {training.STEP: best[training.STEP] - transfer, training.TRANSFER: transfer}
    return samples, step


def _inference_lanes(best: Mapping[str, float], cores: float) -> tuple[Lane, Lane]:
    images = {name: best[name] for name in (inference.READ_FILE, inference.DECODE_FILE)}
    images[_REST] = max(0.0, best[inference.OPEN] - sum(images.values()))
    images[inference.FINISH] = best[inference.FINISH]
    return _scaled(images, sum(images.values()) / cores), {inference.PREDICT: best[inference.PREDICT]}


def _widen(path: Path, lanes: tuple[Lane, Lane], device_type: str) -> Bottleneck:
    sums = [sum(lane.values()) for lane in lanes]
    lane = lanes[sums.index(max(sums))]
    total = max(sums) if device_type == "cuda" else sum(sums)
    stage = max(lane, key=lambda name: lane[name])
    advice = _DEVICE_ADVICE.get((stage, device_type)) or _ADVICE[stage]
    return Bottleneck(path, stage, lane[stage], total, 1000.0 / total, advice)


def _scaled(lane: Lane, total: float) -> Lane:
    """Return the parts in the same proportion, with this sum."""
    factor = total / max(sum(lane.values()), 1e-9)
    return {name: ms * factor for name, ms in lane.items()}
