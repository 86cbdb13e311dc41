"""The Ray Data task that writes one shard."""

import subprocess
import sys
from pathlib import Path

import pytest

from lungseg.config import PreprocessSettings
from lungseg.errors import InputError, TaskResult
from lungseg.ingest import sources
from lungseg.prepare.shard_plan import ShardPlan, plan_shards
from lungseg.prepare.shard_task import write_planned_shard


@pytest.fixture
def plan(archive: Path, tmp_path: Path) -> ShardPlan:
    return plan_shards(sources.discover(str(archive)), str(tmp_path), PreprocessSettings(size=64), 64)[0]


def run_task(plan: ShardPlan) -> TaskResult:
    return TaskResult.from_json(write_planned_shard({"plan": plan.to_json()}, None)["result"])


def test_task_writes_a_shard_once(plan: ShardPlan) -> None:
    first = run_task(plan).unwrap()
    assert first["inputs"] == sum(first["counts"].values()) == len(plan.records)
    assert first["bytes"] == (Path(plan.folder) / f"{plan.name}.tar").stat().st_size
    assert (first["kept"], run_task(plan).unwrap()["kept"]) == (False, True)


def test_task_returns_its_error(plan: ShardPlan) -> None:
    Path(plan.folder).parent.mkdir(parents=True, exist_ok=True)
    Path(plan.folder).write_text("a file in place of the dataset's folder")
    error = run_task(plan).error
    assert isinstance(error, InputError)
    assert plan.folder in str(error)
    assert len(str(error).splitlines()) == 1


def test_module_does_not_import_torch_or_ray() -> None:
    code = "import sys, lungseg.prepare.shard_task; print(*{'torch', 'ray', 'rich', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
