"""What a preparing task says of its shard, and that what its workers import is little."""

import subprocess
import sys
from pathlib import Path

from lungseg.config import PreprocessSettings
from lungseg.errors import TaskResult
from lungseg.ingest import sources
from lungseg.prepare.shard_plan import plan_shards
from lungseg.prepare.shard_task import write_planned_shard


def test_a_shard_is_written_and_told(archive: Path, tmp_path: Path) -> None:
    plan = plan_shards(sources.discover(str(archive)), str(tmp_path), PreprocessSettings(size=64), 64)[0]
    said = TaskResult.from_json(write_planned_shard({"plan": plan.to_json()}, None)["result"]).unwrap()
    assert said["inputs"] == sum(said["counts"].values()) == len(plan.records)
    tar = Path(plan.folder) / f"{plan.name}.tar"
    assert said["bytes"] == tar.stat().st_size
    again = TaskResult.from_json(write_planned_shard({"plan": plan.to_json()}, None)["result"]).unwrap()
    assert (again["kept"], said["kept"]) == (True, False)


def test_what_a_user_can_mend_comes_back_as_a_line(archive: Path, tmp_path: Path) -> None:
    plan = plan_shards(sources.discover(str(archive)), str(tmp_path), PreprocessSettings(size=64), 64)[0]
    Path(plan.folder).parent.mkdir(parents=True, exist_ok=True)
    Path(plan.folder).write_text("a file where the data set's folder should be")
    said = TaskResult.from_json(write_planned_shard({"plan": plan.to_json()}, None)["result"])
    assert plan.folder in str(said.error)
    assert len(str(said.error).splitlines()) == 1


def test_its_workers_import_neither_torch_nor_the_pipeline() -> None:
    code = "import sys, lungseg.prepare.shard_task; print(*{'torch', 'ray', 'rich', 'tyro'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
