"""Rules of the design: imports go in one direction, and job files only start their pipeline."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lungseg.config.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def _copy(tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "lungseg", copy / "lungseg", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LINT_IMPORTS, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


def test_imports_go_one_way(tmp_path: Path) -> None:
    result = _lint(_copy(tmp_path))
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("imaging/codecs.py", "import ray"),
        ("training/run_loop.py", "import ray.train"),
        ("ingest/sources/any_folder.py", "import torch"),
        ("metrics/segmentation.py", "import lungseg.imaging.codecs"),
        ("schema.py", "import lungseg.config"),
        ("dataset/catalog.py", "import lungseg.prepare.shard_writer"),
        ("predictions/parts.py", "import lungseg.prepare.dataset_writer"),
        ("pipelines/infer.py", "import lungseg.pipelines.prepare"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, module: str, line: str) -> None:
    copy = _copy(tmp_path)
    path = copy / "lungseg" / module
    path.write_text(path.read_text() + f"\n{line}\n")
    result = _lint(copy)
    assert result.returncode != 0
    assert "BROKEN" in result.stdout


@pytest.mark.parametrize("job", sorted(RECIPES))
def test_a_job_only_connects(job: str) -> None:
    path = ROOT / "jobs" / f"{job}.py"
    source = path.read_text()
    assert source.startswith("#!/usr/bin/env python3\n")
    assert source.count("\n") <= 20
    assert path.stat().st_mode & 0o111 == 0o111
    imported = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert imported == ["lungseg.cli"]


def test_every_pipeline_has_a_job() -> None:
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(RECIPES)
