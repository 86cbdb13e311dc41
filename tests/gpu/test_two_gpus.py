"""Two ranks on two GPUs train like one. A deadlock ends as a failure after ten minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(700)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Losses by `<world_size>-<rank>` and kind; see ranks_worker.py."""
    out = tmp_path_factory.mktemp("two-gpus")
    command = [sys.executable, str(Path(__file__).with_name("ranks_worker.py")), str(prepared), str(out)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.mark.parametrize(
    "kind",
    ["frozen", pytest.param("sync", marks=pytest.mark.only_on_gpus), "elastic"],
)
def test_two_ranks_have_the_losses_of_one(kind: str, results: dict[str, Any]) -> None:
    """frozen and sync: the same 8 images a step. elastic: three planned ranks, of which one takes two shares."""
    first, second = (results[f"2-{rank}"][kind] for rank in range(2))
    assert first == second
    assert first == pytest.approx(results["1-0"][kind], abs=2e-3)
    assert first[-1] < first[0]
