"""Allocation of CPUs and GPUs, and the errors if there are too few."""

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


def test_too_many_workers_are_refused(ray_cluster: None) -> None:
    with pytest.raises(ResourceError, match="3 CPUs needed, the cluster has 2: pass --workers 2"):
        resources_module.allocate_workers(3, "cpu")


def test_missing_gpus_are_refused(ray_cluster: None) -> None:
    with pytest.raises(ResourceError, match=r"1 GPUs needed, the cluster has 0: pass --device cpu, or add nodes$"):
        resources_module.allocate_workers(1, "gpu")


def test_cpus_of_another_job_are_waited_for(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
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
    """A cluster of one node with adjustable total and free CPUs and GPUs, and short waits."""
    amounts = {"CPU": (8, 8), "GPU": (0, 0)}
    monkeypatch.setattr(resources_module, "cluster_total", lambda name: amounts[name][0])
    monkeypatch.setattr(resources_module, "_free", lambda name: amounts[name][1])
    monkeypatch.setattr(
        resources_module,
        "_node_resources",
        lambda: [{"CPU": amounts["CPU"][0], "GPU": amounts["GPU"][0], "memory": 2.0**33}],
    )
    monkeypatch.setattr(resources_module, "_autoscaler_limit", lambda _: 0)
    monkeypatch.setattr(resources_module, "_WAIT_S", 0.6)
    monkeypatch.setattr(resources_module, "_SETTLE_S", 0.1)
    return amounts


@pytest.mark.parametrize(
    ("cpus", "gpus", "arguments", "expected"),
    [
        ((8, 8), (0, 0), (2, "auto", 9, "auto"), (4, resources_module.WorkerAllocation(2, 1, 0))),  # capacity for four
        (
            (8, 8),
            (0, 0),
            (2, "auto", 3, "auto"),
            (3, resources_module.WorkerAllocation(2, 1, 0)),
        ),  # at most the remaining runs
        (
            (8, 8),
            (0, 0),
            (2, "auto", 1, "auto"),
            (1, resources_module.WorkerAllocation(2, 4, 0)),
        ),  # one run gets all CPUs
        ((8, 8), (0, 0), (1, "cpu", 9, 2), (2, resources_module.WorkerAllocation(1, 4, 0))),  # as requested
        (
            (8, 5),
            (0, 0),
            (2, "auto", 9, "auto"),
            (2, resources_module.WorkerAllocation(2, 1, 0)),
        ),  # another job runs
        ((16, 16), (4, 4), (2, "auto", 9, "auto"), (2, resources_module.WorkerAllocation(2, 4, 1))),  # limited by GPUs
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
        ),  # each GPU needs a CPU
    ],
)
def test_number_of_concurrent_runs(
    cpus: tuple[int, int],
    gpus: tuple[int, int],
    arguments: tuple[int, str, int, int],
    expected: tuple[int, resources_module.WorkerAllocation],
    resources: dict[str, tuple[int, int]],
) -> None:
    resources.update(CPU=cpus, GPU=gpus)
    assert resources_module.allocate_runs(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9, "auto", 3, "auto"), "9 CPUs needed, the cluster has 8: pass --workers-per-run 8, or add nodes"),
        ((1, "gpu", 3, "auto"), "1 GPUs needed, the cluster has 0: pass --device cpu, or add nodes$"),
        ((2, "cpu", 9, 5), "--runs-at-once 5 with 2 workers each: .* enough for 4: pass --runs-at-once 4"),
    ],
)
def test_runs_that_do_not_fit_are_refused(
    arguments: tuple[int, str, int, int], message: str, resources: dict[str, tuple[int, int]]
) -> None:
    with pytest.raises(ResourceError, match=message):
        resources_module.allocate_runs(*arguments)


def test_waiting_runs_suggest_a_lower_runs_at_once(resources: dict[str, tuple[int, int]]) -> None:
    resources["CPU"] = (4, 3)
    with pytest.raises(ResourceError, match=r"4 CPUs needed, 3 of 4 are free .* pass a lower --runs-at-once$"):
        resources_module.allocate_runs(2, "cpu", 3, 2)


@pytest.mark.parametrize(("workers", "expected"), [(1, (1, 1)), (2, (2, 1)), ("auto", (7, 1))])
def test_workers_fit_beside_another_job(
    workers: Any, expected: tuple[int, int], resources: dict[str, tuple[int, int]]
) -> None:
    resources["CPU"] = (8, 7)
    assert resources_module.allocate_workers(workers, "cpu") == resources_module.WorkerAllocation(*expected, 0)


def test_unused_gpus_are_reported(resources: dict[str, tuple[int, int]], caplog: pytest.LogCaptureFixture) -> None:
    resources["GPU"] = (2, 2)
    assert resources_module.allocate_workers(4, "auto") == resources_module.WorkerAllocation(4, 2, 0)
    assert "4 workers run on CPUs: the cluster has only 2 GPUs: pass --workers 2 to use them" in caplog.text
    caplog.clear()
    assert resources_module.allocate_workers(4, "cpu") == resources_module.WorkerAllocation(4, 2, 0)
    assert resources_module.allocate_workers(2, "auto") == resources_module.WorkerAllocation(2, 4, 1)
    assert not caplog.text


def test_runs_wait_for_another_job(resources: dict[str, tuple[int, int]]) -> None:
    resources["CPU"] = (8, 1)
    with pytest.raises(ResourceError, match="2 CPUs needed, 1 of 8 are free after 1 s: wait for the other job"):
        resources_module.allocate_runs(2, "cpu", 3, "auto")


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus"),
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
def test_no_worker_spans_two_nodes(nodes: list[int], workers: int, cpus: int) -> None:
    assert resources_module.cpus_per_worker(nodes, workers) == cpus


def test_worker_memory_is_logged_and_checked(
    resources: dict[str, tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "lungseg"):
        resources_module.require_memory(resources_module.WorkerAllocation(4, 2, 0), 4, 2048)
    assert "4 workers, each with 2 CPUs and 2048 MiB plus its batches" in caplog.text
    with pytest.raises(
        ResourceError, match="4 workers with 3000 MiB each: the nodes have memory for 2: lower --loader"
    ):
        resources_module.require_memory(resources_module.WorkerAllocation(4, 2, 0), 4, 3000)


@pytest.mark.parametrize(
    ("gpus", "device", "runs", "each"), [(8, "auto", 2, 4), (8, "auto", 3, 2), (4, "gpu", 9, 1), (8, "cpu", 2, 1)]
)
def test_gpus_are_shared_among_runs(
    gpus: int, device: str, runs: int, each: int, resources: dict[str, tuple[int, int]]
) -> None:
    resources["GPU"] = (gpus, gpus)
    assert resources_module.workers_per_run(runs, device) == each


@pytest.mark.parametrize(("cpus", "expected"), [(8, 4), (3, 3), (2, 2), (1, 2)])
def test_elastic_run_starts_with_available_workers(
    cpus: int, expected: int, resources: dict[str, tuple[int, int]]
) -> None:
    resources["CPU"] = (cpus, cpus)
    assert resources_module.initial_workers(2, 4, "cpu") == expected


class Autoscaler:
    """Adds a CPU at every query of the cluster, up to the request and its own limit."""

    def __init__(self, amounts: dict[str, tuple[int, int]], limit: int) -> None:
        self.amounts, self.limit, self.requests = amounts, limit, [0]

    def request(self, bundles: list[dict[str, int]]) -> None:
        self.requests.append(len(bundles))

    def total(self, name: str) -> int:
        cpus = self.amounts["CPU"][0]
        if name == "CPU" and cpus < min(self.limit, self.requests[-1]):
            self.amounts["CPU"] = (cpus + 1, cpus + 1)
        return self.amounts[name][0]


@pytest.mark.parametrize(("limit", "requested", "expected"), [(6, 4, 4), (6, "auto", 6), (2, "auto", 2)])
def test_missing_cpus_are_requested_from_the_autoscaler(
    limit: int, requested: Any, expected: int, resources: dict[str, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    resources["CPU"] = (0, 0)
    scaler = Autoscaler(resources, limit)
    monkeypatch.setattr(resources_module, "_autoscaler_limit", lambda name: limit if name == "CPU" else 0)
    monkeypatch.setattr(resources_module, "request_resources", scaler.request)
    monkeypatch.setattr(resources_module, "cluster_total", scaler.total)
    monkeypatch.setattr(resources_module, "_SETTLE_S", 5.0)
    assert resources_module.allocate_workers(requested, "auto").workers == expected
    assert scaler.requests == [0, expected, 0]  # requested once, then released


def test_small_study_requests_only_what_it_uses(
    resources: dict[str, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = Autoscaler(resources, 56)
    monkeypatch.setattr(resources_module, "_autoscaler_limit", lambda name: 56 if name == "CPU" else 0)
    monkeypatch.setattr(resources_module, "request_resources", scaler.request)
    monkeypatch.setattr(resources_module, "cluster_total", scaler.total)
    assert resources_module.allocate_runs(1, "cpu", 1, "auto") == (1, resources_module.WorkerAllocation(1, 8, 0))
    assert scaler.requests == [0]  # the cluster is large enough
    assert resources_module.allocate_runs(1, "cpu", 10, "auto") == (10, resources_module.WorkerAllocation(1, 1, 0))
    assert scaler.requests == [0, 10, 0]


def test_autoscaler_without_new_nodes_is_an_error(
    resources: dict[str, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    resources["CPU"] = (0, 0)
    monkeypatch.setattr(resources_module, "_autoscaler_limit", lambda _: 4)
    monkeypatch.setattr(resources_module, "request_resources", lambda **_: None)
    monkeypatch.setattr(resources_module, "_SCALE_S", 0.1)
    with pytest.raises(ResourceError, match=r"2 CPUs needed, the cluster has 0: add nodes$"):
        resources_module.allocate_workers(2, "cpu")


@pytest.mark.parametrize(
    ("free", "study", "expected"),
    [
        (64, (8, 8, 1), "56 of 64 GPUs idle: pass --workers-per-run auto"),
        (60, (8, 8, 1), "52 of 64 GPUs idle: pass --workers-per-run auto"),  # another job has four
        (64, (20, 4, 1), "60 of 64 GPUs idle: pass --runs-at-once 20"),
        (64, (15, 15, 4), ""),  # auto would not use the last four either
        (64, (64, 64, 1), ""),
        (4, (15, 4, 1), ""),
    ],
)
def test_idle_gpus_are_named_with_the_setting_that_uses_them(
    free: int,
    study: tuple[int, int, int],
    expected: str,
    resources: dict[str, tuple[int, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """study: runs, runs at once, workers of a run."""
    resources["GPU"] = (64, free)
    resources_module.warn_of_idle_gpus(*study)
    assert [record.getMessage() for record in caplog.records] == ([expected] if expected else [])


def test_workers_without_a_gpu_see_none_of_their_node(resources: dict[str, tuple[int, int]]) -> None:
    assert resources_module.environment_without_gpus() == {}
    resources["GPU"] = (8, 8)
    assert resources_module.environment_without_gpus() == {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
