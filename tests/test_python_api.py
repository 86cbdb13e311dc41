"""The public names of lungseg: quick to import, documented, typed; the page and the notebook run."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydicom.data import get_testdata_file

import lungseg
from lungseg.errors import CheckpointError
from lungseg.model import sources
from tests import typed_user
from tests.conftest import DrawPair

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text()


@pytest.fixture
def installed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny run is the model `lungs`; the working folder is empty."""
    monkeypatch.setattr(sources, "installed", lambda: {"lungs": str(trained)})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_import_loads_no_other_package() -> None:
    code = "import sys; before = set(sys.modules); import lungseg; print(sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.partition(".")[0] for name in re.findall(r"'([^']+)'", result.stdout)}
    assert "lungseg" in loaded
    assert loaded <= {"lungseg", *sys.stdlib_module_names}


def test_public_names_exist_and_are_documented() -> None:
    assert set(lungseg.__all__) <= set(dir(lungseg))
    for name in lungseg.__all__:
        assert getattr(lungseg, name).__doc__
        assert f"lungseg.{name}" in PAGE


def test_public_attributes_of_a_result_are_documented() -> None:
    public = {name for name in dir(lungseg.Result) if not name.startswith("_")}
    internal = {"upright_mask", "squares", "geometry", "file", "max_doubt"}
    fields = set(lungseg.Result.__dataclass_fields__)
    documented = set(re.findall(r"`(\w+)[`(]", PAGE))
    assert (public | fields) - internal <= documented


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lungseg' has no attribute 'lod'"):
        lungseg.lod  # noqa: B018


def test_missing_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="other is no installed model"):
        lungseg.load("other")


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_snippets_run(page: str, installed: Path) -> None:
    (installed / "chest.dcm").write_bytes(Path(str(get_testdata_file("RG1_UNCR.dcm"))).read_bytes())
    (installed / "notes.txt").write_text("no picture")
    names: dict[str, Any] = {}
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(snippet, names)
    if "results" in names:
        assert (cv2.imread("lungs.png", cv2.IMREAD_UNCHANGED) == names["results"][0].mask * 255).all()
        assert [result.ok for result in names["results"]] == [True, False]


def test_notebook_runs(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((ROOT / "docs" / "python.ipynb").read_text())
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    output = capsys.readouterr().out
    assert "pixels that differ: 0\n" in output
    assert "image-2 rejected" in output
    assert {path.name for path in installed.iterdir()} == {"RG1.mask.png", "RG1.overlay.png", "RG1.dicom-seg.dcm"}


def test_typed_code_runs(installed: Path, trained: Path, archive: Path, draw_pair: DrawPair) -> None:
    areas = typed_user.segment_folder(str(trained), archive / "south" / "images", installed)
    assert len(areas) == 3
    assert all(cv2.imread(path, cv2.IMREAD_UNCHANGED) is not None for path in areas)
    images = [(255 - draw_pair(seed, 90, 80)[0]).astype(np.uint16) * 257 for seed in range(2)]
    assert typed_user.count_masks(lungseg.load(), images) == 2
