"""CPU time per image of the stages that need no model: `python tests/benchmark_costs.py`. Prints a table.

The stages of `lungseg bench` at 512 px, on one core, in rounds: minimum CPU ms an image over the rounds. The X-rays are
pydicom's RG1, a radiograph of 1955 x 1841 px, uncompressed and as JPEG 2000; the samples are prepared phantoms with the
augmentation of the recipe `release`. Not a test, because the results depend on the machine.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
from pydicom.data import get_testdata_file

from lungseg.bench import inputs
from lungseg.bench.inference_stages import image_stages
from lungseg.bench.timing import Stage, measure
from lungseg.bench.training_stages import sample_stages
from lungseg.config import BenchSettings
from lungseg.config.recipes import BENCH
from lungseg.imaging import phantom

ROUNDS, SECONDS = 10, 300.0
X_RAYS = {"uncompressed": "RG1_UNCR.dcm", "JPEG 2000": "RG1_J2KR.dcm"}


def stages(out: str) -> list[Stage]:
    settings = BENCH["release"][1]
    assert isinstance(settings, BenchSettings)
    settings = settings.model_copy(update={"out": out})
    phantoms = Path(out, "phantoms")
    phantom.write_archive(phantoms, 2, size=settings.size)
    data = inputs.open_data(settings, str(phantoms))
    probability, preprocess = inputs.plausible_probability(settings.size), data[0].preprocess
    result = sample_stages(data, settings.training)
    for coding, name in X_RAYS.items():
        archive = str(get_testdata_file(name, download=False))
        opened = inputs.open_images(settings.model_copy(update={"archive": archive}), preprocess, "")
        result += [
            replace(stage, name=f"{stage.name}, {coding}") for stage in image_stages(opened, preprocess, probability)
        ]
    return result


def main() -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as out:
        times = measure(stages(out), ROUNDS, SECONDS, lambda _: None)
    print("| stage | CPU ms an image | its limit | times the limit |\n| --- | --- | --- | --- |")
    for entry in times:
        limit = f"{min(entry.limit_cpu_ms):.2f} ({entry.stage.limit_name})"
        print(f"| {entry.stage.name} | {min(entry.cpu_ms):.2f} | {limit} | {entry.ratio:.1f} |")


if __name__ == "__main__":
    main()
