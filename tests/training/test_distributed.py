"""One to four ranks compute the same results from the same images."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lungseg import storage
from lungseg.model import checkpoint
from lungseg.training import distributed
from tests.training.ranks_worker import EPOCHS

WORLDS = (1, 2, 3)
WORLDS_OF_ONE_BATCH = (1, 2, 4)
Results = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def out(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of every rank and world_size; see ranks_worker.py."""
    folder = tmp_path_factory.mktemp("ranks")
    worker = Path(__file__).with_name("ranks_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker), str(prepared), str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=480,
        # The same kernels on every machine: some CPUs sum batches of different sizes in different orders, and ten steps
        # of Adam amplify that beyond the tolerance.
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
    )
    assert done.returncode == 0, done.stderr
    return folder


def _read(out: Path, worlds: Sequence[int]) -> Results:
    return {
        world: [json.loads((out / f"{world}-{rank}.json").read_text()) for rank in range(world)] for world in worlds
    }


@pytest.fixture(scope="module")
def results(out: Path) -> Results:
    """Results by world_size, in rank order."""
    return _read(out, WORLDS)


def test_every_rank_knows_its_number(results: Results) -> None:
    for world, ranks in results.items():
        assert [result["rank_and_world_size"] for result in ranks] == [[rank, world] for rank in range(world)]


def test_every_rank_gathers_all_values_in_rank_order(results: Results) -> None:
    for world, ranks in results.items():
        assert all(result["gathered"] == [f"of {rank}" for rank in range(world)] for result in ranks)


def test_any_world_size_measures_every_image_equally(results: Results) -> None:
    (single,) = results[1]
    assert len(single["rows"]) == len({(row["dataset"], row["image_id"]) for row in single["rows"]}) == 8
    assert 0 < sum(row["tp"] for row in single["rows"]) < sum(row["tp"] + row["fn"] for row in single["rows"])
    for first, *others in results.values():
        for name in ("rows", "native"):
            assert first[name] == single[name]
            assert all(result[name] == [] for result in others)  # millions of rows stay in one process


def test_every_training_sample_is_read_once_an_epoch(results: Results) -> None:
    (single,) = results[1]
    all_ids = sorted(row["image_id"] for row in single["rows"])
    for ranks in results.values():
        for epoch in range(2):
            assert sorted(name for result in ranks for name in result["trained_on"][epoch]) == all_ids
    assert single["trained_on"][0] != single["trained_on"][1]


@pytest.mark.parametrize("kind", ["plain", "clipped, averaged", "accumulating"])
def test_any_number_of_ranks_takes_the_same_steps(kind: str, results: Results) -> None:
    """Without dropout and batch norm, which differ between ranks."""
    single = results[1][0]["steps"][kind]
    assert len(set(single["losses"])) == len(single["losses"]) == EPOCHS
    assert single["losses"][-1] < 0.97 * single["losses"][0]
    assert single["sizes"] == ([4] * 2 * EPOCHS if kind == "accumulating" else [8] * EPOCHS)
    if kind == "plain":  # with unequal batches, a mean of the ranks' means would differ
        assert {size for result in results[3] for size in result["steps"][kind]["sizes"]} == {2, 3}
    for ranks in (results[world] for world in WORLDS if kind in results[world][0]["steps"]):
        for result in (rank["steps"][kind] for rank in ranks):
            assert result["losses"] == pytest.approx(single["losses"], abs=1e-5)
            # Adam turns rounding differences of gradients near 0 into full steps.
            assert result["weights"] == pytest.approx(single["weights"], rel=1e-3, abs=1e-3)
            assert result["weights"] == ranks[0]["steps"][kind]["weights"]


def test_accumulated_steps_equal_those_of_the_whole_batch(results: Results) -> None:
    plain = results[1][0]["steps"]["plain"]["losses"]
    for world in (1, 2):
        steps = results[world][0]["steps"]
        assert steps["accumulating"]["losses"] == pytest.approx(plain, abs=1e-5)
        assert steps["clipped, averaged"]["losses"] != pytest.approx(plain, abs=1e-5)


def test_a_global_batch_gives_equal_losses_for_any_ranks(results: Results, out: Path) -> None:
    """Ten steps of 8 images. Frozen statistics: equal. Local ones are over 8, 4 and 2 images, so losses differ."""
    plain = results[1][0]["steps"]["plain"]["losses"]
    losses = {world: ranks[0]["global batch"] for world, ranks in _read(out, WORLDS_OF_ONE_BATCH).items()}
    assert all(len(kinds["frozen"]) == 10 for kinds in losses.values())
    for world in (2, 4):
        assert losses[world]["frozen"] == pytest.approx(losses[1]["frozen"], abs=1e-5)
        assert losses[world]["frozen"][:EPOCHS] == pytest.approx(plain, abs=1e-5)
        local = [abs(a - b) for a, b in zip(losses[world]["local"], losses[1]["local"], strict=True)]
        assert 1e-3 < max(local) < 0.2


def test_synchronised_statistics_give_equal_losses_for_any_ranks(out: Path) -> None:
    """Trained, not frozen: the statistics are over all 8 images, whoever has them. torch's own need a GPU."""
    losses = {world: ranks[0]["global batch"] for world, ranks in _read(out, WORLDS_OF_ONE_BATCH).items()}
    for world in WORLDS_OF_ONE_BATCH:
        assert losses[world]["sync"] == pytest.approx(losses[1]["sync"], abs=1e-4)
        # torch computes the statistics of one rank in another order, and Adam turns that into full steps.
        assert losses[world]["sync"] == pytest.approx(losses[1]["local"], abs=5e-3)


def test_local_statistics_are_those_of_the_planned_ranks(results: Results, out: Path) -> None:
    """Ranks that take over lost ones, unevenly, end each step together and with the same loss."""
    expected = _read(out, (4,))[4][0]["global batch"]["local"]
    for world in (2, 3):
        assert all(
            result["local of four planned ranks"] == pytest.approx(expected, abs=1e-4) for result in results[world]
        )


def test_ranks_that_replace_lost_ones_take_the_same_steps(results: Results) -> None:
    """Two or three ranks process batches planned for four, of two images each; three share them unevenly."""
    plain = results[1][0]["steps"]["plain"]["losses"]
    for world, shares in ((2, [2 * EPOCHS] * 2), (3, [2 * EPOCHS, EPOCHS, EPOCHS])):
        steps = [result["steps"]["of four planned ranks"] for result in results[world]]
        assert [result["sizes"] for result in steps] == [[2] * share for share in shares]
        assert all(result["losses"] == pytest.approx(plain, abs=1e-5) for result in steps)
        assert all(result["weights"] == steps[0]["weights"] for result in steps)


def test_shared_buffers_are_those_of_rank_0(results: Results) -> None:
    for ranks in results.values():
        befores, afters = zip(*(result["buffers"] for result in ranks), strict=True)
        assert all(after == befores[0] for after in afters)
        assert all(before != befores[0] for before in befores[1:])


def test_two_ranks_end_with_one_model_and_summary(results: Results, out: Path) -> None:
    for kind, saved, tested_images in (("local", 2, 4), ("frozen", 4, 1)):
        first, second = (result["runs"][kind] for result in results[2])
        assert first["summary"] == second["summary"]
        assert (first["saved"], second["saved"]) == (saved, 0)
        assert first["state"] == second["state"]  # includes batch norm statistics
        written = storage.read_json(f"{out}/{kind}/run.json")
        assert written["tested"] == first["summary"]["tested"]
        tested = storage.read_table(f"{out}/{kind}/tested.parquet").to_pylist()
        assert len(tested) == len({row["image_id"] for row in tested}) == tested_images
        lines = [json.loads(line) for line in (out / kind / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [1, 2]
    local = storage.read_json(f"{out}/local/run.json")
    assert [(part["role"], part["images"]) for part in local["tested"]] == [("cross", 3), ("held-out", 1)]


@pytest.mark.parametrize("kind", ["local", "frozen"])
def test_killed_run_of_two_ranks_gives_the_same_result(kind: str, results: Results, out: Path) -> None:
    for result in results[2]:
        uninterrupted, killed = result["runs"][kind], result["killed"][kind]
        assert {name: killed[name] for name in ("summary", "state")} == {
            name: uninterrupted[name] for name in uninterrupted if name != "saved"
        }
        assert killed["began_at"] == ([1, 2] if kind == "frozen" else [1, 0])
    folders = [out / kind, out / f"{kind}-killed"]
    assert len({checkpoint.find_all(str(folder))[0].digest for folder in folders}) == 1
    tables = [storage.read_table(f"{folder}/tested.parquet") for folder in folders]
    assert tables[0].equals(tables[1])
    times = ("train_s", "epoch_s", "images_per_second", "rank_images_per_second", "device_wait_share")
    lines = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in folders]
    bare = [[{name: row[name] for name in row if name not in times} for row in rows] for rows in lines]
    assert bare[0] == bare[1]


def test_too_few_images_are_refused_on_every_rank_alike(results: Results, out: Path) -> None:
    messages = {result["refused"] for result in results[3]}
    assert messages == {"too-few: 4 training images, 6 needed for 3 workers: lower --workers-per-run"}
    assert not (out / "refused").exists()


def test_one_process_alone_needs_no_group() -> None:
    model = nn.BatchNorm1d(3)
    assert distributed.rank_and_world_size() == (0, 1)
    assert distributed.gather("mine") == distributed.gather_on_first_rank("mine") == ["mine"]
    assert distributed.on_first_rank(lambda: "mine") == "mine"
    assert distributed.wrap_for_ddp(model, torch.device("cpu"), True) is model
    distributed.wait_for_all_ranks()
    distributed.broadcast_buffers(model)
    assert model.running_mean is not None
    assert model.running_mean.tolist() == [0.0, 0.0, 0.0]
