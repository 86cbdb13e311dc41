"""What a package index shows."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lungseg

ROOT = Path(__file__).resolve().parents[1]


def test_a_folder_above_the_clone_imports_the_package(tmp_path: Path) -> None:
    """The clone is a folder `lungseg` without code of its own; Python must not take it for the package."""
    (tmp_path / "lungseg").mkdir()
    code = "import lungseg; print(lungseg.__version__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{lungseg.__version__}\n", "")


def test_the_description_names_no_file_that_an_index_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    setuptools = pytest.importorskip("setuptools")
    settings: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", settings.update)
    runpy.run_path(str(ROOT / "setup.py"))
    text = settings["long_description"]
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert [link for link in links if not link.startswith("https://")] == []
    assert "![" not in text
    assert text.startswith("# lungseg\n")
    assert "- **Clinicians and students** segment one file or folder" in text
