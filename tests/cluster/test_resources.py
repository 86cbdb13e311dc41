"""How much of a cluster a job takes, and what it is told where there is not enough."""

from typing import Any

import pytest
import ray

from lungseg.cluster import resources as resources_module
from lungseg.errors import ResourceError


def test_workers_share_the_cpus(ray_cluster: None) -> None:
    assert resources_module.allocate_workers(1, "cpu") == resources_module.WorkerAllocation(workers=1, cpus=2, gpus=0)
    assert resources_module.allocate_workers(2, "auto") == resources_module.WorkerAllocation(workers=2, cpus=1, gpus=0)
    assert resources_module.allocate_workers("auto", "auto") == resources_module.WorkerAllocation(
        workers=2, cpus=1, gpus=0
    )


def test_more_workers_than_cpus_is_an_error_not_a_hang(ray_cluster: None) -> None:
    with pytest.raises(ResourceError, match="3 CPUs needed, the cluster has 2: pass --workers 2"):
        resources_module.allocate_workers(3, "cpu")


def test_gpus_that_are_not_there(ray_cluster: None) -> None:
    with pytest.raises(ResourceError, match=r"1 GPUs needed, the cluster has 0: pass --device cpu, or add nodes$"):
        resources_module.allocate_workers(1, "gpu")


def test_cpus_that_another_job_holds(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    @ray.remote
    class Holder:
        def ready(self) -> bool:
            return True

    monkeypatch.setattr(resources_module, "_WAIT_S", 0.2)
    holders = [Holder.options(num_cpus=1).remote() for _ in range(2)]
    try:
        ray.get([holder.ready.remote() for holder in holders])
        with pytest.raises(ResourceError, match="1 CPUs needed, 0 of 2 are free"):
            resources_module.require_cpus(1)
    finally:
        for holder in holders:
            ray.kill(holder)
    monkeypatch.setattr(resources_module, "_WAIT_S", 30.0)
    resources_module.require_cpus(2)
    assert ray.available_resources()["CPU"] == 2


@pytest.fixture
def resources(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """A cluster of one node whose CPUs and GPUs, in all and free, the test chooses; nobody waits for others' long."""
    found = {"CPU": (8, 8), "GPU": (0, 0)}
    monkeypatch.setattr(resources_module, "total", lambda name: found[name][0])
    monkeypatch.setattr(resources_module, "_free", lambda name: found[name][1])
    monkeypatch.setattr(
        resources_module,
        "_node_resources",
        lambda: [{"CPU": found["CPU"][0], "GPU": found["GPU"][0], "memory": 2.0**33}],
    )
    monkeypatch.setattr(resources_module, "_promised", lambda _: 0)
    monkeypatch.setattr(resources_module, "_WAIT_S", 0.6)
    monkeypatch.setattr(resources_module, "_SETTLE_S", 0.1)
    return found


@pytest.mark.parametrize(
    ("cpus", "gpus", "asked", "given"),
    [
        ((8, 8), (0, 0), (2, "auto", 9, "auto"), (4, resources_module.WorkerAllocation(2, 1, 0))),  # room for four
        (
            (8, 8),
            (0, 0),
            (2, "auto", 3, "auto"),
            (3, resources_module.WorkerAllocation(2, 1, 0)),
        ),  # no more than are left
        (
            (8, 8),
            (0, 0),
            (2, "auto", 1, "auto"),
            (1, resources_module.WorkerAllocation(2, 4, 0)),
        ),  # all CPUs are shared
        ((8, 8), (0, 0), (1, "cpu", 9, 2), (2, resources_module.WorkerAllocation(1, 4, 0))),  # as asked
        ((8, 5), (0, 0), (2, "auto", 9, "auto"), (2, resources_module.WorkerAllocation(2, 1, 0))),  # beside another job
        ((16, 16), (4, 4), (2, "auto", 9, "auto"), (2, resources_module.WorkerAllocation(2, 4, 1))),  # GPUs decide
        ((16, 16), (4, 3), (1, "auto", 9, "auto"), (3, resources_module.WorkerAllocation(1, 4, 1))),
        (
            (16, 16),
            (4, 4),
            (8, "auto", 9, "auto"),
            (2, resources_module.WorkerAllocation(8, 1, 0)),
        ),  # too few GPUs: CPUs
        (
            (2, 2),
            (4, 4),
            (1, "gpu", 9, "auto"),
            (2, resources_module.WorkerAllocation(1, 1, 1)),
        ),  # each GPU wants a CPU
    ],
)
def test_as_many_runs_at_once_as_there_is_room_for(
    cpus: tuple[int, int],
    gpus: tuple[int, int],
    asked: tuple[int, str, int, int],
    given: tuple[int, resources_module.WorkerAllocation],
    resources: dict[str, tuple[int, int]],
) -> None:
    resources.update(CPU=cpus, GPU=gpus)
    assert resources_module.allocate_runs(*asked) == given


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((9, "auto", 3, "auto"), "9 CPUs needed, the cluster has 8: pass --workers-per-run 8, or add nodes"),
        ((1, "gpu", 3, "auto"), "1 GPUs needed, the cluster has 0: pass --device cpu, or add nodes$"),
        ((2, "cpu", 9, 5), "--runs-at-once 5 of 2 workers each: .* room for 4: pass --runs-at-once 4"),
    ],
)
def test_runs_that_have_no_room(
    asked: tuple[int, str, int, int], said: str, resources: dict[str, tuple[int, int]]
) -> None:
    with pytest.raises(ResourceError, match=said):
        resources_module.allocate_runs(*asked)


def test_runs_at_once_that_wait_are_told_to_be_fewer(resources: dict[str, tuple[int, int]]) -> None:
    resources["CPU"] = (4, 3)
    with pytest.raises(ResourceError, match=r"4 CPUs needed, 3 of 4 are free .* pass fewer --runs-at-once$"):
        resources_module.allocate_runs(2, "cpu", 3, 2)


@pytest.mark.parametrize(("workers", "given"), [(1, (1, 1)), (2, (2, 1)), ("auto", (7, 1))])
def test_workers_find_room_beside_another_job(
    workers: Any, given: tuple[int, int], resources: dict[str, tuple[int, int]]
) -> None:
    resources["CPU"] = (8, 7)
    assert resources_module.allocate_workers(workers, "cpu") == resources_module.WorkerAllocation(*given, 0)


def test_gpus_that_are_left_idle_are_told(
    resources: dict[str, tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    resources["GPU"] = (2, 2)
    assert resources_module.allocate_workers(4, "auto") == resources_module.WorkerAllocation(4, 2, 0)
    assert "4 workers on CPUs: the cluster has 2 GPUs, not one for each: pass --workers 2 to use them" in caplog.text
    caplog.clear()
    assert resources_module.allocate_workers(4, "cpu") == resources_module.WorkerAllocation(4, 2, 0)
    assert resources_module.allocate_workers(2, "auto") == resources_module.WorkerAllocation(2, 4, 1)
    assert not caplog.text


def test_runs_wait_for_a_job_that_holds_all(resources: dict[str, tuple[int, int]]) -> None:
    resources["CPU"] = (8, 1)
    with pytest.raises(ResourceError, match="2 CPUs needed, 1 of 8 are free after 1 s: wait for the other job"):
        resources_module.allocate_runs(2, "cpu", 3, "auto")


@pytest.mark.parametrize(
    ("nodes", "workers", "each"),
    [
        ([2], 1, 2),
        ([2], 2, 1),
        ([8, 8], 1, 8),
        ([8, 8], 3, 4),
        ([8, 8], 4, 4),
        ([0, 16], 2, 8),
        ([1, 1], 4, 1),
        ([0], 1, 1),
    ],
)
def test_no_worker_spans_two_nodes(nodes: list[int], workers: int, each: int) -> None:
    assert resources_module.cpus_per_worker(nodes, workers) == each


def test_the_memory_of_all_workers_is_said_and_checked(
    resources: dict[str, tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "lungseg"):
        resources_module.require_memory(resources_module.WorkerAllocation(4, 2, 0), 4, 2048)
    assert "4 workers, each 2 CPUs and 2048 MiB beside its batches" in caplog.text
    with pytest.raises(ResourceError, match="4 workers of 3000 MiB: the nodes' memory has room for 2: lower --loader"):
        resources_module.require_memory(resources_module.WorkerAllocation(4, 2, 0), 4, 3000)


@pytest.mark.parametrize(
    ("gpus", "device", "runs", "each"), [(8, "auto", 2, 4), (8, "auto", 3, 2), (4, "gpu", 9, 1), (8, "cpu", 2, 1)]
)
def test_auto_shares_the_gpus_among_runs(
    gpus: int, device: str, runs: int, each: int, resources: dict[str, tuple[int, int]]
) -> None:
    resources["GPU"] = (gpus, gpus)
    assert resources_module.workers_per_run(runs, device) == each


@pytest.mark.parametrize(("cpus", "there"), [(8, 4), (3, 3), (2, 2), (1, 2)])
def test_an_elastic_run_begins_with_what_there_is(cpus: int, there: int, resources: dict[str, tuple[int, int]]) -> None:
    resources["CPU"] = (cpus, cpus)
    assert resources_module.initial_workers(2, 4, "cpu") == there


class Autoscaler:
    """Brings a CPU with every look at the cluster, up to what was asked of it and no more than it has."""

    def __init__(self, found: dict[str, tuple[int, int]], has: int) -> None:
        self.found, self.has, self.asked = found, has, [0]

    def request(self, bundles: list[dict[str, int]]) -> None:
        self.asked.append(len(bundles))

    def total(self, name: str) -> int:
        there = self.found["CPU"][0]
        if name == "CPU" and there < min(self.has, self.asked[-1]):
            self.found["CPU"] = (there + 1, there + 1)
        return self.found[name][0]


@pytest.mark.parametrize(("has", "asked", "given"), [(6, 4, 4), (6, "auto", 6), (2, "auto", 2)])
def test_an_autoscaler_is_asked_for_what_is_not_there_yet(
    has: int, asked: Any, given: int, resources: dict[str, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    resources["CPU"] = (0, 0)
    scaler = Autoscaler(resources, has)
    monkeypatch.setattr(resources_module, "_promised", lambda name: has if name == "CPU" else 0)
    monkeypatch.setattr(resources_module, "request_resources", scaler.request)
    monkeypatch.setattr(resources_module, "total", scaler.total)
    monkeypatch.setattr(resources_module, "_SETTLE_S", 5.0)
    assert resources_module.allocate_workers(asked, "auto").workers == given
    assert scaler.asked == [0, given, 0]  # asked for once, and taken back


def test_a_small_study_asks_an_autoscaler_for_no_more_than_it_uses(
    resources: dict[str, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = Autoscaler(resources, 56)
    monkeypatch.setattr(resources_module, "_promised", lambda name: 56 if name == "CPU" else 0)
    monkeypatch.setattr(resources_module, "request_resources", scaler.request)
    monkeypatch.setattr(resources_module, "total", scaler.total)
    assert resources_module.allocate_runs(1, "cpu", 1, "auto") == (1, resources_module.WorkerAllocation(1, 8, 0))
    assert scaler.asked == [0]  # what is there is enough
    assert resources_module.allocate_runs(1, "cpu", 10, "auto") == (10, resources_module.WorkerAllocation(1, 1, 0))
    assert scaler.asked == [0, 10, 0]


def test_an_autoscaler_that_brings_nothing_ends_in_an_error(
    resources: dict[str, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    resources["CPU"] = (0, 0)
    monkeypatch.setattr(resources_module, "_promised", lambda _: 4)
    monkeypatch.setattr(resources_module, "request_resources", lambda **_: None)
    monkeypatch.setattr(resources_module, "_SCALE_S", 0.1)
    with pytest.raises(ResourceError, match=r"2 CPUs needed, the cluster has 0: add nodes$"):
        resources_module.allocate_workers(2, "cpu")
