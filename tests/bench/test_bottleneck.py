"""The stage that limits training, and the one that limits inference, and what to change."""

import re
from typing import get_args

import pytest

from lungseg.bench import bottleneck, inference_stages as inference, training_stages as training
from lungseg.bench.timing import Path, Stage, StageTimes
from lungseg.config.options import options_of
from lungseg.config.recipes import RECIPES

# ms an image: the loader with two threads takes 4 ms, the step 10 ms, the images of an inference 24 ms on one core.
TIMES: dict[Path, dict[str, float]] = {
    "training": {
        training.READ: 1.0,
        training.DECODE: 2.0,
        training.AUGMENT: 5.0,
        f"{training.LOAD} (1 thread)": 8.0,
        f"{training.LOAD} (2 threads)": 4.0,
        training.TRANSFER: 1.0,
        training.STEP: 10.0,
    },
    "inference": {
        inference.READ_FILE: 1.0,
        inference.DECODE_FILE: 8.0,
        inference.OPEN: 12.0,
        inference.PREDICT: 5.0,
        inference.FINISH: 12.0,
    },
}


def widened(device: str, cores: float, is_cached: bool = False, **changes: float) -> list[bottleneck.Bottleneck]:
    changes = {name.replace("_", " "): ms for name, ms in changes.items()}
    times = [
        StageTimes(Stage(path, name, 1, lambda _: None), [changes.get(name, ms)])
        for path in get_args(Path)
        for name, ms in TIMES[path].items()
    ]
    return bottleneck.find_bottlenecks(times, device, cores, is_cached)


def test_on_cpus_all_stages_share_the_cores() -> None:
    train, infer = widened("cpu", cores=2)
    assert (train.stage, train.ms, train.total_ms) == (training.STEP, 9.0, 14.0)  # a step of 10 ms with 1 ms of copies
    assert train.images_per_second == pytest.approx(1000 / 14)
    assert (infer.stage, infer.ms, infer.total_ms) == (inference.FINISH, 6.0, 17.0)
    assert "--device gpu" in str(train)


def test_on_a_gpu_the_slower_lane_limits() -> None:
    train, infer = widened("cuda", cores=12)
    assert (train.stage, train.total_ms) == (training.STEP, 10.0)
    assert (infer.stage, infer.total_ms) == (inference.PREDICT, 5.0)
    train, infer = widened("cuda", cores=4, **{training.STEP.replace(" ", "_"): 2.0})
    assert (train.stage, train.ms, train.total_ms) == (training.AUGMENT, 2.5, 4.0)
    assert (infer.stage, infer.ms, infer.total_ms) == (inference.FINISH, 3.0, 6.0)


def test_cached_samples_are_neither_read_nor_decoded() -> None:
    (train, _) = widened("cpu", cores=2, is_cached=True)
    assert train.total_ms == 12.5
    (train, _) = widened(
        "cuda", cores=2, decode_a_sample=20.0, is_cached=True, **{training.STEP.replace(" ", "_"): 0.5}
    )
    assert train.stage == training.AUGMENT


def test_every_stage_has_advice_that_names_real_options() -> None:
    options = {
        name
        for job in RECIPES
        for group in options_of(RECIPES[job]["demo"][1]).values()
        for option in group
        for name in option.names
    }
    for device in ("cpu", "cuda"):
        for path, times in TIMES.items():
            for slowest in times:
                changes = {name.replace(" ", "_"): 0.001 for name in times} | {slowest.replace(" ", "_"): 900.0}
                train, infer = widened(device, 1.0, **changes)
                sentence = str(train if path == "training" else infer)
                assert sentence.count(".") >= 1
                assert set(re.findall(r"--[\w.-]*\w", sentence)) <= options
