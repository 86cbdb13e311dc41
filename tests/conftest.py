"""Small archives for all tests. Fixtures with session scope are read-only: copy one before you change it."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from lungseg.config import PreprocessSettings
from lungseg.ingest import sources
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from tests.shared_fixtures import bucket, predicted, ray_cluster, study, trained, without_ray
from tests.slow_files import SHARE_RESULTS, SLOWEST

__all__ = ["bucket", "predicted", "ray_cluster", "study", "trained", "without_ray"]

# On a busy machine with few cores, threads of torch mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The first call imports and compiles, so a deadline per example is meaningless. Each run draws other examples.
settings.register_profile("lungseg", deadline=None, max_examples=60)
settings.load_profile("lungseg")


# Folders and files whose tests share one Ray cluster: with several test processes they all run in one of them.
_SHARE_RAY = ("tests/pipelines/", "tests/cluster/", "tests/test_end_to_end.py", "tests/test_jobs.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Assign complete files to each test process, so that file fixtures and the Ray cluster are created once.

    Slow tests start processes and nodes of their own, so most of their files are assigned freely.
    """
    from xdist.scheduler import LoadFileScheduling

    is_slow = config.getoption("markexpr") == "slow"
    together = SHARE_RESULTS if is_slow else _SHARE_RAY
    if is_slow:
        config.option.loadscopereorder = False  # keeps the order of the collection

    class SharingFiles(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "together" if file.startswith(together) else file

    return SharingFiles(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort slow tests: the longest files first."""
    if config.getoption("markexpr") == "slow":
        ranks = {file: rank for rank, file in enumerate(SLOWEST)}
        items.sort(key=lambda item: ranks.get(item.nodeid.partition("::")[0], len(ranks)))


@pytest.fixture(autouse=True)
def fresh_logging() -> Iterator[None]:
    """Undo the logging setup of a test, so that the next test reads only its own log."""
    logger = logging.getLogger("lungseg")
    before = (logger.handlers[:], logger.propagate, logger.level)
    yield
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the cache of models out of the home folder; processes that tests start use it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Undo the thread setting of a training: with two threads, later tests take ten times as long on a busy machine."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


U8 = NDArray[np.uint8]
DrawPair = Callable[[int, int, int], tuple[U8, U8]]


def _draw_pair(seed: int, height: int, width: int) -> tuple[U8, U8]:
    random = np.random.default_rng((seed, height, width))
    mask = np.zeros((height, width), np.uint8)
    for centre in (0.29, 0.71):
        middle = (round(centre * width), round(random.uniform(0.45, 0.55) * height))
        axes = (round(0.15 * width), round(random.uniform(0.28, 0.36) * height))
        cv2.ellipse(mask, middle, axes, random.uniform(-6.0, 6.0), 0.0, 360.0, 1, -1)
    noise = random.normal(0.0, 9.0, mask.shape)
    return np.clip(np.where(mask == 1, 70.0, 170.0) + noise, 1, 255).astype(np.uint8), mask


@pytest.fixture(scope="session")
def draw_pair() -> DrawPair:
    """Draw (seed, height, width): an image u8[H,W], two dark ellipses on noise, and its mask u8[H,W] in {0,1}."""
    return _draw_pair


@pytest.fixture(scope="session")
def cxr256(pytestconfig: pytest.Config) -> Path:
    """Real chest X-rays, `montgomery` and `shenzhen` with images/ and masks/; skips if they are not available."""
    folder = (pytestconfig.rootpath / ".." / "shared" / "data" / "cxr256").resolve()
    if not folder.is_dir():
        pytest.skip(f"the real X-rays are not at hand: no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images with masks in two datasets, `north` (5) and `south` (3), each with images/ and masks/."""
    folder = tmp_path_factory.mktemp("archive")
    sizes = {
        "north": [(96, 96), (128, 110), (120, 150), (200, 180), (101, 97)],
        "south": [(160, 160), (99, 140), (180, 96)],
    }
    for dataset, images in sizes.items():
        for number, (height, width) in enumerate(images):
            image, mask = _draw_pair(number + 10 * len(dataset) + ord(dataset[0]), height, width)
            for kind, array in (("images", image), ("masks", mask * np.uint8(255))):
                path = folder / dataset / kind / f"{dataset}_{number:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), array)
    return folder


@pytest.fixture(scope="session")
def prepared(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive prepared at 64 px, two inputs per tar: a folder with the datasets `north` and `south`."""
    folder = tmp_path_factory.mktemp("prepared")
    records = sources.discover(str(archive))
    dataset_writer.write_datasets(plan_shards(records, str(folder), PreprocessSettings(size=64), images_per_shard=2))
    return folder


@pytest.fixture
def own_archive(archive: Path, tmp_path: Path) -> Path:
    """A copy of the archive that a test may change."""
    return Path(shutil.copytree(archive, tmp_path / "own-archive"))


@pytest.fixture
def own_prepared(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared datasets that a test may damage."""
    return Path(shutil.copytree(prepared, tmp_path / "own-prepared"))
