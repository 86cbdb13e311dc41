"""An edge installation: `lungseg segment` without torch, Ray and pyarrow, with the masks of a complete one."""

import os
import resource
import subprocess
import sys
import venv
from pathlib import Path

import cv2
import numpy as np
import pytest

import lungseg
from lungseg.imaging import phantom

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs" / "run_onnx.py"
ABSENT = (
    "torch",
    "torchvision",
    "ray",
    "pyarrow",
    "scipy",
    "timm",
    "safetensors",
    "wandb",
    "yaml",
    "pandas",
    "openvino",
)
MAX_MB, MAX_MEMORY_MB = 350, 300
MAX_CPU_S = 3.0  # twice the time on an idle machine, as others may use the same memory and caches

pytest.importorskip("onnxruntime")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), phantom.draw(4, "montgomery", 700)[0])
    return path


def expected_mask(picture: Path) -> np.ndarray:
    return lungseg.load("lungs", backend="onnxruntime")(str(picture)).mask


def test_segmenting_needs_none_of_the_large_packages(picture: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {ABSENT!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *a: None if name.split('.')[0] in {ABSENT!r} else real(name, *a)\n"
        "from lungseg import cli\n"
        f"sys.exit(cli.dispatch(['segment', {str(picture)!r}, '-o', {str(tmp_path / 'out')!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    mask = cv2.imread(str(tmp_path / "out" / "masks" / "x.png"), cv2.IMREAD_GRAYSCALE)
    assert (mask == expected_mask(picture) * 255).all()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file()) == [
        "predictions.csv",
        "segment.json",
    ]


def run_example(model: Path, picture: Path) -> np.ndarray:
    """Return where docs/run_onnx.py, with an ONNX file alone, finds lung."""
    mask = picture.with_suffix(".mask.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, str(EXAMPLE), model, picture, mask], check=True, env=environment)
    return cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) > 0


def test_the_example_runs_a_file_with_its_metadata_alone(trained: Path, archive: Path, tmp_path: Path) -> None:
    from lungseg.pipelines import export_model

    model, picture = tmp_path / "m.onnx", tmp_path / "x.png"
    cv2.imwrite(str(picture), phantom.draw(4, "montgomery", 64)[0])  # the size of the model: nothing is enlarged
    export_model.run([str(trained), "-o", str(model), "--format", "onnx", "--images", str(archive)])
    result = lungseg.load(model)(str(picture))
    expected = result.probability >= result.row["threshold"]
    assert expected.any()
    assert (run_example(model, picture) == expected).all()


def test_the_example_nearly_agrees_where_masks_are_enlarged(picture: Path) -> None:
    result = lungseg.load("lungs", backend="onnxruntime")(str(picture))
    expected = result.probability >= result.row["threshold"]
    found = run_example(ROOT / "lungseg" / "model" / "released" / "lungs" / "model.onnx", picture)
    assert (found != expected).mean() < 0.002  # lungseg smooths probabilities that it enlarges


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().split('"""', 2)[2].splitlines()) <= 40


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the locked packages and the wheel; skips where no registry answers."""
    folder = tmp_path_factory.mktemp("edge")
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--no-cache-dir", "install", "--quiet"]
    locked = subprocess.run(
        [*pip, "--no-deps", "--require-hashes", "-r", str(ROOT / "requirements-edge.txt")],
        capture_output=True,
        text=True,
        check=False,
    )
    if locked.returncode and "Could not find a version" in locked.stderr:
        pytest.skip(f"no registry answers: {locked.stderr[-300:]}")
    assert locked.returncode == 0, locked.stderr
    subprocess.run([*pip, "--no-deps", str(ROOT)], check=True)
    subprocess.run(
        [folder / "bin" / "python", "-m", "pip", "uninstall", "--yes", "--quiet", "pip", "setuptools"], check=True
    )
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_edge_installation_gives_the_same_masks(environment: Path, picture: Path, tmp_path: Path) -> None:
    command = [environment / "bin" / "lungseg", "segment", "--model", "lungs", picture, "-o", tmp_path / "out"]
    subprocess.run(command, check=True, cwd=tmp_path)  # compiles the modules
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    mask = cv2.imread(str(tmp_path / "out" / "masks" / "x.png"), cv2.IMREAD_GRAYSCALE)
    assert (mask == expected_mask(picture) * 255).all()
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MAX_CPU_S


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_edge_installation_is_small(environment: Path, picture: Path, tmp_path: Path) -> None:
    packages = next((environment / "lib").glob("python*/site-packages"))
    assert not {path.name for path in packages.iterdir()} & {*ABSENT}
    size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert size < MAX_MB * 1e6
    code = (
        "import re, sys\n"
        "from lungseg import cli\n"
        f"assert cli.dispatch(['segment', {str(picture)!r}, '-o', {str(tmp_path / 'out')!r}]) == 0\n"
        # Not ru_maxrss, which begins with the memory of this test's process.
        "sys.stderr.write(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    done = subprocess.run(
        [environment / "bin" / "python", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert int(done.stderr.splitlines()[-1]) / 1024 < MAX_MEMORY_MB
