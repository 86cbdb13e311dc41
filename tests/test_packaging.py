"""What a package index shows."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
