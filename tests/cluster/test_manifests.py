"""The files of cluster/ are what their readers accept: KubeRay's schemas, Ray's own validation, the jobs' options."""

import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.runtime_env import packaging
from ray.runtime_env import RuntimeEnv

from lungseg.recipes import parse

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "schemas" / "kuberay-1.7.0"
SECRET = ("token", "secret", "password", "passwd", "credential", "api_key", "access_key")


def _documents() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(CLUSTER.glob("*.yaml")):
        for number, document in enumerate(yaml.safe_load_all(path.read_text())):
            if str(document.get("apiVersion", "")).startswith("ray.io/"):
                found[f"{path.name}-{number}"] = document
    return found


DOCUMENTS = _documents()
JOBS = [name for name, document in DOCUMENTS.items() if document["kind"] == "RayJob"]


def test_there_is_a_job_for_training() -> None:
    assert any(name.startswith("rayjob-train.yaml") for name in JOBS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_kuberay_takes_it(name: str) -> None:
    path = SCHEMAS / f"{DOCUMENTS[name]['kind'].lower()}.schema.json"
    if not path.is_file():
        pytest.skip(f"KubeRay's schemas are not at hand: no file {path}")
    schema = json.loads(path.read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors(DOCUMENTS[name])
    assert not [f"{error.json_path}: {error.message[:200]}" for error in errors]


@pytest.mark.parametrize("name", JOBS)
def test_its_entrypoint_is_a_job_with_real_options(name: str) -> None:
    spec = DOCUMENTS[name]["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[0] == "python"
    assert (ROOT / words[1]).is_file()
    settings = parse(Path(words[1]).stem, words[2:])  # type: ignore[arg-type]
    if words[1] == "jobs/train.py":
        groups = spec["rayClusterSpec"]["workerGroupSpecs"]
        assert settings.workers_per_run == sum(group["replicas"] for group in groups)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", JOBS)
def test_it_asks_for_a_token_and_holds_none(name: str) -> None:
    spec = DOCUMENTS[name]["spec"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    RuntimeEnv(**yaml.safe_load(spec["runtimeEnvYAML"]))
    assert "RAY_AUTH_TOKEN" not in json.dumps(spec)


def _runtime_env() -> dict[str, Any]:
    loaded = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_ray_takes_the_runtime_env() -> None:
    loaded = _runtime_env()
    taken = RuntimeEnv(**loaded)
    assert taken["excludes"] == loaded["excludes"]
    assert taken["env_vars"] == loaded["env_vars"]


def test_the_runtime_env_holds_no_secret() -> None:
    names = [name.lower() for name in _runtime_env()["env_vars"]]
    assert not [name for name in names if any(word in name for word in SECRET)]


KEPT = ("jobs/train.py", "lungseg/__init__.py", "lungseg/data/__init__.py", "lungseg/data/shards.py", "pyproject.toml")
LEFT = (
    "data/prepared/index.parquet",
    "data/notes.txt",
    "runs/study/run.json",
    "demo/phantoms/report.html",
    "predictions/part-0.json",
    ".git/HEAD",
    ".venv/bin/python",
    "wandb/run/log.txt",
    "lungseg/__pycache__/config.pyc",
    "elsewhere/lungs-000000.tar",
    "elsewhere/rows.parquet",
)


@pytest.mark.parametrize("by", [".rayignore", "cluster/runtime_env.yaml"])
def test_the_upload_leaves_data_and_keeps_the_code(by: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in KEPT + LEFT:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("x")
    if by == ".rayignore":
        (tree / by).write_bytes((ROOT / by).read_bytes())
    package = tmp_path / "package.zip"
    excludes = [] if by == ".rayignore" else _runtime_env()["excludes"]
    packaging.create_package(str(tree), package, include_gitignore=False, excludes=excludes)
    with zipfile.ZipFile(package) as archive:
        assert set(archive.namelist()) - {".rayignore"} == set(KEPT)


def test_this_project_is_small_enough_to_upload(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    packaging.create_package(str(ROOT), package, include_gitignore=False)
    assert package.stat().st_size < 20 * 1024**2
    with zipfile.ZipFile(package) as archive:
        assert {"jobs/train.py", "lungseg/data/shards.py"} <= set(archive.namelist())
