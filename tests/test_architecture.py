"""The design guards itself: imports go one way, jobs only connect, every module has its tests, the README is true."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lungseg.config.command_line import parse
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
        ("ingest/sources/folders.py", "import torch"),
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


def _commands() -> list[str]:
    """Commands in the Markdown files' shell blocks, continued lines joined, comments dropped."""
    blocks = [
        block
        for path in (ROOT / "README.md", ROOT / "cluster" / "README.md")
        for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", path.read_text(), re.DOTALL)
    ]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return sorted({stripped for line in lines if (stripped := line.split(" #")[0].strip().removeprefix("$ "))})


def test_the_readme_has_commands() -> None:
    assert {"make demo", "make test"} <= set(_commands())


@pytest.mark.parametrize("command", _commands())
def test_a_command_of_the_readme_exists(command: str) -> None:
    words = shlex.split(command)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if words[0] == "make":
        assert all(word in targets for word in words[1:] if "=" not in word)
        return
    jobs = [i for i, word in enumerate(words) if re.fullmatch(r"jobs/\w+\.py", word)]
    for i in jobs:
        job = Path(words[i]).stem
        assert job in RECIPES
        assert parse(job, words[i + 1 :]) is not None  # type: ignore[arg-type]
    named = [word for word in words if word.startswith(("cluster/", ".venv/bin/", ".ci/"))]
    assert all((ROOT / word).exists() for word in named)
    known = {"python", "ray", "eval", "export", "git", "cd", "kubectl", "pip", "RAY_ADDRESS=local"}
    assert jobs or named or words[0] in known, f"nothing tells that this exists: {command}"
