"""A disk that fills in the midst of each job: one line that says so, nothing torn, and more room lets it finish."""

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from lungseg import storage
from lungseg.imaging import phantom
from lungseg.model import checkpoint
from tests.cluster import commands
from tests.pipelines.processes import family, kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = 4096  # what a tmpfs gives a file at a time
# Where each job writes, and how much of what it leaves at its end it finds at its beginning. A checkpoint is written
# beside the one before it: so there is room for the first and not for the second.
OUT = {"prepare": "data", "train": "runs", "infer": "predictions", "report": "report", "export": "export"}
ROOM = {"prepare": 0.6, "train": 1.5, "infer": 0.6, "report": 0.7, "export": 0.6}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five jobs with room enough; read only. The pictures are in `archive`."""
    place = tmp_path_factory.mktemp("undisturbed")
    phantom.write_archive(place / "archive", 4, size=96)
    (place / "home").mkdir()
    for job in OUT:
        status, said = _run(job, place)
        assert status == 0, said
    return place


@pytest.fixture
def place(undisturbed: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it without the outputs; what was mounted on it is taken off."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    try:
        yield tmp_path
    finally:
        for folder in (tmp_path / name for name in OUT.values()):
            if folder.is_mount() and subprocess.run(["umount", str(folder)], check=False).returncode:
                subprocess.run(["umount", "-l", str(folder)], check=False)


def _run(job: str, place: Path) -> tuple[int, str]:
    log = place / f"{job}.log"
    # A full disk stays full: to lose a worker to it once is enough.
    more = ["--max-failures", "0"] if job == "train" else []
    command = commands.words(job, str(place), str(place / "archive"), *more)
    process = commands.start(command, commands.environment(place / "home"), log)
    try:
        return process.wait(timeout=280), log.read_text()
    finally:
        kill(family(process))
        process.wait()


def _mount(folder: Path, size: int) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")


def _size(folder: Path) -> int:
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


def _require_whole(path: Path, same: Path) -> None:
    """Read a file to its end, as whoever finds it under its final name would."""
    content = path.read_bytes()
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            assert all(tar.extractfile(one).read() for one in tar)  # type: ignore[union-attr]
        assert content == same.read_bytes()
    elif path.suffix == ".parquet":
        storage.read_table(str(path))
    elif path.suffix in (".json", ".jsonl"):
        assert [json.loads(line) for line in (content.splitlines() if path.suffix == ".jsonl" else [content])]
        if path.name == "config.json":
            checkpoint.verify(str(path.parent))
    elif path.suffix == ".png":
        assert cv2.imread(str(path)) is not None
        assert content == same.read_bytes()
    elif path.suffix == ".html":
        assert content.rstrip().endswith(b"</html>")
    else:
        assert path.suffix in (".safetensors", ".pt"), path  # what config.json says of these is verified above


def _results(job: str, place: Path) -> Any:
    """What a job is for, without where it lies."""
    archive = str(place / "archive")
    if job == "export":
        paths = sorted(path for path in (place / "export").rglob("*") if path.is_file())
        told = commands.anywhere(json.loads((place / "export" / "annotations.json").read_text()), str(place), archive)
        return [told, {str(path.relative_to(place)): path.read_bytes() for path in paths if path.suffix == ".png"}]
    read = {"prepare": commands.prepared, "train": commands.trained}
    if job in read:
        return read[job](str(place))
    return {"infer": commands.predicted, "report": commands.reported}[job](str(place), archive)


@pytest.mark.parametrize("job", OUT)
def test_a_disk_that_fills_is_told_and_more_room_finishes(job: str, undisturbed: Path, place: Path) -> None:
    out = place / OUT[job]
    _mount(out, int(_size(undisturbed / OUT[job]) * ROOM[job]) // PAGE * PAGE)
    status, said = _run(job, place)
    assert status == 1, said
    told = commands.complaint(said)
    assert str(out) in told
    assert "No space left on device" in told
    assert "make room" in told

    left = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in left if path.name.startswith(".writing-")]
    finals = [path for path in left if not any(part.startswith(".") for part in path.relative_to(place).parts)]
    assert finals, "it did not come far enough to leave anything"
    for path in finals:
        _require_whole(path, undisturbed / path.relative_to(place))

    subprocess.run(["mount", "-o", "remount,size=64m", str(out)], check=True)
    status, said = _run(job, place)
    assert status == 0, said
    there = (str(undisturbed), str(undisturbed / "archive"))  # what was copied still names it
    assert commands.anywhere(_results(job, place), *there) == _results(job, undisturbed)
