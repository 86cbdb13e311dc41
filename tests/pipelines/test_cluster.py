import socket
from pathlib import Path

import pytest
import ray

from lungseg.errors import ResourceError
from lungseg.pipelines import cluster


def test_workers_share_the_cpus(ray_cluster: None) -> None:
    assert cluster.share(1, "cpu") == cluster.Share(workers=1, cpus=2, gpus=0)
    assert cluster.share(2, "auto") == cluster.Share(workers=2, cpus=1, gpus=0)
    assert cluster.share(0, "auto") == cluster.Share(workers=2, cpus=1, gpus=0)


def test_more_workers_than_cpus_is_an_error_not_a_hang(ray_cluster: None) -> None:
    with pytest.raises(ResourceError, match="3 CPUs needed, the cluster has 2: pass --workers 2"):
        cluster.share(3, "cpu")


def test_gpus_that_are_not_there(ray_cluster: None) -> None:
    with pytest.raises(ResourceError, match="1 GPUs needed, the cluster has 0: pass --workers 1 or --device cpu"):
        cluster.share(1, "gpu")


def test_cpus_that_another_job_holds(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    @ray.remote
    class Holder:
        def ready(self) -> bool:
            return True

    monkeypatch.setattr(cluster, "_WAIT_S", 0.2)
    holders = [Holder.options(num_cpus=1).remote() for _ in range(2)]
    try:
        ray.get([holder.ready.remote() for holder in holders])
        with pytest.raises(ResourceError, match="1 CPUs needed, 0 of 2 are free"):
            cluster.require_cpus(1)
    finally:
        for holder in holders:
            ray.kill(holder)
    monkeypatch.setattr(cluster, "_WAIT_S", 30.0)
    cluster.require_cpus(2)
    assert ray.available_resources()["CPU"] == 2


@pytest.fixture
def resources(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """A cluster of one node whose CPUs and GPUs, in all and free, the test chooses; nobody waits for others' long."""
    found = {"CPU": (8, 8), "GPU": (0, 0)}
    monkeypatch.setattr(cluster, "_total", lambda name: found[name][0])
    monkeypatch.setattr(cluster, "_free", lambda name: found[name][1])
    monkeypatch.setattr(cluster, "_node_cpus", lambda: [found["CPU"][0]])
    monkeypatch.setattr(cluster, "_WAIT_S", 0.6)
    monkeypatch.setattr(cluster, "_SETTLE_S", 0.1)
    return found


@pytest.mark.parametrize(
    ("cpus", "gpus", "asked", "given"),
    [
        ((8, 8), (0, 0), (2, "auto", 9, 0), (4, cluster.Share(2, 1, 0))),  # room for four
        ((8, 8), (0, 0), (2, "auto", 3, 0), (3, cluster.Share(2, 1, 0))),  # no more than are left
        ((8, 8), (0, 0), (2, "auto", 1, 0), (1, cluster.Share(2, 4, 0))),  # all CPUs are shared
        ((8, 8), (0, 0), (1, "cpu", 9, 2), (2, cluster.Share(1, 4, 0))),  # as asked
        ((8, 5), (0, 0), (2, "auto", 9, 0), (2, cluster.Share(2, 1, 0))),  # beside another job
        ((16, 16), (4, 4), (2, "auto", 9, 0), (2, cluster.Share(2, 1, 1))),  # GPUs decide
        ((16, 16), (4, 3), (1, "auto", 9, 0), (3, cluster.Share(1, 1, 1))),
        ((16, 16), (4, 4), (8, "auto", 9, 0), (2, cluster.Share(8, 1, 0))),  # too few GPUs: CPUs
        ((2, 2), (4, 4), (1, "gpu", 9, 0), (2, cluster.Share(1, 1, 1))),  # each GPU wants a CPU
    ],
)
def test_as_many_runs_at_once_as_there_is_room_for(
    cpus: tuple[int, int],
    gpus: tuple[int, int],
    asked: tuple[int, str, int, int],
    given: tuple[int, cluster.Share],
    resources: dict[str, tuple[int, int]],
) -> None:
    resources.update(CPU=cpus, GPU=gpus)
    assert cluster.share_among_runs(*asked) == given


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((9, "auto", 3, 0), "9 CPUs needed, the cluster has 8: pass --workers-per-run 8, or add nodes"),
        ((1, "gpu", 3, 0), "1 GPUs needed, the cluster has 0: pass --workers-per-run 1 or --device cpu"),
        ((2, "cpu", 9, 5), "--runs-at-once 5 of 2 workers each: .* room for 4: pass --runs-at-once 4"),
    ],
)
def test_runs_that_have_no_room(
    asked: tuple[int, str, int, int], said: str, resources: dict[str, tuple[int, int]]
) -> None:
    with pytest.raises(ResourceError, match=said):
        cluster.share_among_runs(*asked)


def test_runs_wait_for_a_job_that_holds_all(resources: dict[str, tuple[int, int]]) -> None:
    resources["CPU"] = (8, 1)
    with pytest.raises(ResourceError, match="2 CPUs needed, 1 of 8 are free after 1 s: wait for the other job"):
        cluster.share_among_runs(2, "cpu", 3, 0)


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
    assert cluster.cpus_each(nodes, workers) == each


def test_a_killed_cluster_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's note of the last cluster here outlives a killed one, and Ray would knock there for minutes."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert cluster._address() == "local"
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as living:
        note.write_text(f"127.0.0.1:{living.getsockname()[1]}")
        assert cluster._address() is None
    assert cluster._address() == "local"
    note.write_text("torn")
    assert cluster._address() == "local"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster._address() == "auto"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("refused"), "no Ray answers at local: start it, or set RAY_ADDRESS=local"),
        (
            Exception("The current node timed out. This could happen"),
            r"Ray did not start \(The current node timed out\)",
        ),
    ],
    ids=["nobody there", "not in time"],
)
def test_a_ray_that_does_not_come_up_is_told(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ResourceError, match=said):
        cluster.connect()
    error = KeyError("a bug")
    with pytest.raises(KeyError, match="a bug"):
        cluster.connect()
