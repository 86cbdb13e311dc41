"""One Ray cluster for all tests of pipelines, of two CPUs whatever the machine has."""

from collections.abc import Iterator

import pytest
import ray

from lungseg.pipelines import cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        patch.setenv("WANDB_MODE", "disabled")
        start = ray.init

        def two_cpus(**options: object) -> object:
            return start(**{**options, "num_cpus": 2, "include_dashboard": False})

        patch.setattr(cluster.ray, "init", two_cpus)
        cluster.connect()
        yield
        ray.shutdown()
