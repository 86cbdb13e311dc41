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
    with pytest.raises(ResourceError, match="1 GPUs asked, the cluster has 0"):
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
