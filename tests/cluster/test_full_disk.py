"""A disk that fills while a job writes: one clear error, complete files only, and with more room the job finishes."""

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lungseg import storage
from lungseg.config.recipes import Job
from lungseg.errors import LungsegError
from lungseg.model import checkpoint
from tests.cluster import commands

pytestmark = pytest.mark.slow

PAGE = 4096  # the unit in which a tmpfs gives space to a file
# The folder that each job writes, and the space for it as a share of what the job writes. A new checkpoint is written
# beside the old one: 1.5 has space for the first and not for the second.
OUT: dict[Job, str] = {
    "prepare": "data",
    "train": "runs",
    "infer": "predictions",
    "report": "report",
    "export": "export",
}
SPACE: dict[Job, float] = {"prepare": 0.6, "train": 1.5, "infer": 0.6, "report": 0.7, "export": 0.6}


@pytest.fixture
def root(undisturbed: Path, tmp_path: Path) -> Iterator[Path]:
    """Copy the undisturbed results; mounts of a test on the copy are removed."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    try:
        yield tmp_path
    finally:
        for folder in (tmp_path / name for name in OUT.values()):
            if folder.is_mount() and subprocess.run(["umount", str(folder)], check=False).returncode:
                subprocess.run(["umount", "-l", str(folder)], check=False)


def _run(job: Job, root: Path) -> None:
    # A full disk stays full: one lost worker is enough to show it.
    commands.run(job, root, *(["--max-failures", "0"] if job == "train" else []))


def _mount(folder: Path, size: int) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")


def _size(folder: Path) -> int:
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


def _require_complete(path: Path, same: Path) -> None:
    """Read a file to its end, as a reader would."""
    content = path.read_bytes()
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            assert all(tar.extractfile(member).read() for member in tar)  # type: ignore[union-attr]
        assert content == same.read_bytes()
    elif path.suffix == ".parquet":
        storage.read_table(str(path))
    elif path.suffix in (".json", ".jsonl"):
        assert [json.loads(line) for line in (content.splitlines() if path.suffix == ".jsonl" else [content])]
        if path.name == "config.json":
            checkpoint.verify(str(path.parent))
    elif path.suffix in (".png", ".csv"):
        assert content == same.read_bytes()
    elif path.suffix == ".arrow":
        assert len(pa.ipc.open_file(path).read_all())
    elif path.suffix == ".html":
        assert content.rstrip().endswith(b"</html>")
    else:
        assert path.suffix in (".safetensors", ".pt"), path  # verified with config.json above


def _results(job: Job, root: Path) -> Any:
    """Return the results of a job without folder names."""
    archive = str(root / "archive")
    if job == "export":
        paths = sorted(path for path in (root / "export").rglob("*") if path.is_file())
        annotations = json.loads((root / "export" / "annotations.json").read_text())
        return [
            commands.without_folders(annotations, str(root), archive),
            {str(path.relative_to(root)): path.read_bytes() for path in paths if path.suffix == ".png"},
        ]
    read = {"prepare": commands.prepared, "train": commands.trained}
    if job in read:
        return read[job](str(root))
    return {"infer": commands.predicted, "report": commands.reported}[job](str(root), archive)


@pytest.mark.parametrize("job", OUT)
def test_full_disk_is_one_error_and_more_room_finishes(job: Job, undisturbed: Path, root: Path) -> None:
    out = root / OUT[job]
    _mount(out, int(_size(undisturbed / OUT[job]) * SPACE[job]) // PAGE * PAGE)
    with pytest.raises(LungsegError) as caught:
        _run(job, root)
    message = str(caught.value)
    assert caught.value.exit_status == 1
    assert "\n" not in message
    assert str(out) in message
    assert "No space left on device" in message
    assert "free disk space" in message

    files = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in files if path.name.startswith(".writing-")]
    finals = [path for path in files if not any(name.startswith(".") for name in path.relative_to(root).parts)]
    assert finals, "the disk was full before the job wrote a file"
    for path in finals:
        _require_complete(path, undisturbed / path.relative_to(root))

    subprocess.run(["mount", "-o", "remount,size=64m", str(out)], check=True)
    _run(job, root)
    copied_from = (str(undisturbed), str(undisturbed / "archive"))  # the copied files still name these
    assert commands.without_folders(_results(job, root), *copied_from) == _results(job, undisturbed)
