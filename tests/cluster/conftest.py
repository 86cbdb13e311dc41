"""Results of all jobs, which several tests compare with those of disturbed jobs."""

from pathlib import Path

import pytest

from lungseg.imaging import phantom
from tests.cluster import commands


@pytest.fixture(scope="session")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all jobs on eight phantoms, which are in `archive`; read only."""
    root = tmp_path_factory.mktemp("undisturbed")
    phantom.write_archive(root / "archive", 4, size=96)
    for job in commands.JOBS:
        commands.run(job, root)
    return root
