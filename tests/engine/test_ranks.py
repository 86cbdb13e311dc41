"""One, two and three processes do the same work: nothing is read twice, left out, or weighted otherwise."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lungseg import storage
from lungseg.engine import ranks

WORLDS = (1, 2, 3)
Results = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def out(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every rank of every world wrote what it found; see ranks_worker.py."""
    folder = tmp_path_factory.mktemp("ranks")
    worker = Path(__file__).with_name("ranks_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker), str(prepared), str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def results(out: Path) -> Results:
    """What the ranks found, a list a world, in the order of ranks."""
    return {
        world: [json.loads((out / f"{world}-{rank}.json").read_text()) for rank in range(world)] for world in WORLDS
    }


def test_every_rank_knows_its_number(results: Results) -> None:
    for world, found in results.items():
        assert [one["rank_and_world"] for one in found] == [[rank, world] for rank in range(world)]


def test_every_rank_gathers_all_values_in_the_order_of_ranks(results: Results) -> None:
    for world, found in results.items():
        assert all(one["gathered"] == [f"of {rank}" for rank in range(world)] for one in found)


def test_any_number_of_ranks_measures_every_image_once_and_alike_to_the_pixel(results: Results) -> None:
    (alone,) = results[1]
    assert len(alone["rows"]) == len({(row["dataset"], row["image_id"]) for row in alone["rows"]}) == 8
    assert 0 < sum(row["tp"] for row in alone["rows"]) < sum(row["tp"] + row["fn"] for row in alone["rows"])
    for found in results.values():
        assert all(one["rows"] == alone["rows"] for one in found)


def test_every_training_sample_is_read_once_an_epoch(results: Results) -> None:
    (alone,) = results[1]
    everybody = sorted(row["image_id"] for row in alone["rows"])
    for found in results.values():
        for epoch in range(2):
            assert sorted(name for one in found for name in one["trained_on"][epoch]) == everybody
    assert alone["trained_on"][0] != alone["trained_on"][1]


def test_any_number_of_ranks_takes_the_same_steps(results: Results) -> None:
    (alone,) = results[1]
    assert len(set(alone["losses"])) == len(alone["losses"])
    assert alone["sizes"] == [8] * 6
    assert {size for one in results[3] for size in one["sizes"]} == {2, 3}  # a mean of ranks' means would be wrong
    for found in results.values():
        for one in found:
            assert one["losses"] == pytest.approx(alone["losses"], abs=1e-5)
            assert one["weights"] == pytest.approx(alone["weights"], abs=1e-5)
            assert one["weights"] == found[0]["weights"]


def test_shared_buffers_are_those_of_rank_0(results: Results) -> None:
    for found in results.values():
        befores, afters = zip(*(one["buffers"] for one in found), strict=True)
        assert all(after == befores[0] for after in afters)
        assert all(before != befores[0] for before in befores[1:])


def test_a_run_of_two_ranks_ends_with_one_model_and_one_summary(results: Results, out: Path) -> None:
    first, second = results[2]
    assert first["summary"] == second["summary"]
    assert (first["saved"], second["saved"]) == (2, 0)
    assert first["state"] == second["state"]  # statistics of batch norm, too
    written = storage.read_json(f"{out}/run/run.json")
    assert written["tested"] == first["summary"]["tested"]
    assert [(part["role"], part["images"]) for part in written["tested"]] == [("cross", 3), ("held-out", 1)]
    tested = storage.read_table(f"{out}/run/tested.parquet").to_pylist()
    assert len(tested) == len({row["image_id"] for row in tested}) == 4
    lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


def test_too_few_images_are_refused_on_every_rank_alike(results: Results, out: Path) -> None:
    said = {one["refused"] for one in results[3]}
    assert said == {"too-few: 4 training images, 6 needed for 3 workers: lower --workers"}
    assert not (out / "refused").exists()


def test_one_process_alone_needs_no_group() -> None:
    model = nn.BatchNorm1d(3)
    assert ranks.rank_and_world() == (0, 1)
    assert ranks.gather("mine") == ["mine"]
    assert ranks.data_parallel(model, torch.device("cpu")) is model
    ranks.wait_for_all()
    ranks.share_buffers(model)
    assert model.running_mean is not None
    assert model.running_mean.tolist() == [0.0, 0.0, 0.0]
