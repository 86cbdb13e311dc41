"""Manifests in cluster/ pass KubeRay's schemas, Ray's validation and the jobs' option parser."""

import copy
import json
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.runtime_env import packaging
from ray.runtime_env import RuntimeEnv

from lungseg.config.command_line import parse

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "schemas" / "kuberay-1.7.0"
SECRET = ("token", "secret", "password", "passwd", "credential", "api_key", "access_key")


def _documents() -> dict[str, dict[str, Any]]:
    documents: dict[str, dict[str, Any]] = {}
    for path in sorted(CLUSTER.glob("*.yaml")):
        for number, document in enumerate(yaml.safe_load_all(path.read_text())):
            if str(document.get("apiVersion", "")).startswith("ray.io/"):
                documents[f"{path.name}-{number}"] = document
    return documents


DOCUMENTS = _documents()
JOBS = [name for name, document in DOCUMENTS.items() if document["kind"] == "RayJob"]


def _cluster(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = DOCUMENTS[name]["spec"]
    return spec["rayClusterSpec"] if name in JOBS else spec  # type: ignore[no-any-return]


def _settings(name: str) -> Any:
    words = shlex.split(DOCUMENTS[name]["spec"]["entrypoint"])
    return parse(Path(words[1]).stem, words[2:])  # type: ignore[arg-type]


def _gpus(group: dict[str, Any]) -> int:
    """Return the number of GPUs that a pod of the group requests."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return int(limits.get("nvidia.com/gpu", 0))


def test_manifests_cover_each_job_and_a_permanent_cluster() -> None:
    files = {name.rsplit("-", 1)[0] for name in DOCUMENTS}
    jobs = {f"rayjob-{job}.yaml" for job in ("prepare", "train", "infer", "train-kueue")}
    assert files == jobs | {"raycluster.yaml"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_kuberay_accepts_the_file(name: str) -> None:
    path = SCHEMAS / f"{DOCUMENTS[name]['kind'].lower()}.schema.json"
    if not path.is_file():
        pytest.skip(f"KubeRay's schemas are not available: no file {path}")
    schema = json.loads(path.read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors(DOCUMENTS[name])
    assert not [f"{error.json_path}: {error.message[:200]}" for error in errors]


@pytest.mark.parametrize("name", JOBS)
def test_entrypoint_is_a_job_with_valid_options(name: str) -> None:
    words = shlex.split(DOCUMENTS[name]["spec"]["entrypoint"])
    assert words[0] == "python"
    assert (ROOT / words[1]).is_file()
    settings = _settings(name)
    # Files outside /shared are lost with the pod.
    assert settings.out.startswith("/shared/")


@pytest.mark.parametrize("name", JOBS)
def test_gpu_pods_match_the_number_of_workers(name: str) -> None:
    groups = [group for group in _cluster(name)["workerGroupSpecs"] if _gpus(group)]
    job = Path(shlex.split(DOCUMENTS[name]["spec"]["entrypoint"])[1]).stem
    if job == "prepare":
        assert not groups
        return
    settings = _settings(name)
    assert settings.device == "gpu"
    workers = settings.workers_per_run if job == "train" else settings.workers
    # A job counts the GPUs when it starts, which is when the pods of `replicas` are ready. It ignores later pods.
    assert workers == sum(group["replicas"] * _gpus(group) for group in groups)
    assert all(group["minReplicas"] == group["replicas"] == group["maxReplicas"] for group in groups)
    assert all(
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in _tolerations(g) for g in groups
    )


def _tolerations(group: dict[str, Any]) -> list[dict[str, str]]:
    return list(group["template"]["spec"].get("tolerations", []))


@pytest.mark.parametrize("name", JOBS)
def test_job_has_a_deadline_retries_and_cleanup(name: str) -> None:
    spec = DOCUMENTS[name]["spec"]
    assert 3600 <= spec["activeDeadlineSeconds"] <= 7 * 86400
    assert 1 <= spec["backoffLimit"] <= 5
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["ttlSecondsAfterFinished"] <= 3600
    RuntimeEnv(**yaml.safe_load(spec["runtimeEnvYAML"]))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_file_requires_a_token_and_holds_none(name: str) -> None:
    assert _cluster(name)["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH_TOKEN" not in json.dumps(DOCUMENTS[name])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_head_runs_no_tasks(name: str) -> None:
    head = _cluster(name)["headGroupSpec"]
    assert {key: head["rayStartParams"][key] for key in ("num-cpus", "num-gpus")} == {"num-cpus": "0", "num-gpus": "0"}
    assert not _gpus(head)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_pods_mount_storage_and_shared_memory(name: str) -> None:
    cluster = _cluster(name)
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"] == "lungseg"
        assert container["resources"]["requests"] == container["resources"]["limits"]
        if "groupName" in group:
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_autoscaled_pool_is_bounded_and_starts_with_one(name: str) -> None:
    cluster = _cluster(name)
    pools = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    grows = any(pool["minReplicas"] < pool["maxReplicas"] for pool in pools.values())
    assert grows == cluster.get("enableInTreeAutoscaling", False)
    if grows:
        assert pools["cpu"]["minReplicas"] == pools["cpu"]["replicas"] == 1
        assert pools["cpu"]["maxReplicas"] <= 16
        assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] >= 60
        # Otherwise a restarted container would be a second Ray node in the same pod.
        groups = [cluster["headGroupSpec"], *pools.values()]
        assert all(group["template"]["spec"]["restartPolicy"] == "Never" for group in groups)


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("ray[jc]*.yaml")), ids=lambda path: path.name)
def test_images_have_a_fixed_tag_marked_change(path: Path) -> None:
    lines = re.findall(r"^ +image: (\S+)(.*)$", path.read_text(), re.MULTILINE)
    assert lines
    assert all(re.search(r":[0-9][^:/]*$", image) and "# CHANGE" in comment for image, comment in lines)


def test_kueue_job_equals_the_training_job_otherwise() -> None:
    plain, queued = (copy.deepcopy(DOCUMENTS[f"rayjob-{name}.yaml-0"]) for name in ("train", "train-kueue"))
    labels = queued["metadata"].pop("labels")
    assert queued["spec"].pop("suspend") is True
    assert queued == plain
    kinds = {item["kind"]: item for item in yaml.safe_load_all((CLUSTER / "kueue.yaml").read_text())}
    assert {item["apiVersion"] for item in kinds.values()} == {"kueue.x-k8s.io/v1beta2"}
    assert labels == {"kueue.x-k8s.io/queue-name": kinds["LocalQueue"]["metadata"]["name"]}
    assert kinds["LocalQueue"]["spec"] == {"clusterQueue": kinds["ClusterQueue"]["metadata"]["name"]}
    (group,) = kinds["ClusterQueue"]["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert flavor["name"] == kinds["ResourceFlavor"]["metadata"]["name"]
    assert [item["name"] for item in flavor["resources"]] == group["coveredResources"]
    quotas = {item["name"]: _number(item["nominalQuota"]) for item in flavor["resources"]}
    cluster = plain["spec"]["rayClusterSpec"]
    pods = [(cluster["headGroupSpec"], 1), *((group, group["replicas"]) for group in cluster["workerGroupSpecs"])]
    for resource, quota in quotas.items():
        requested = [(group["template"]["spec"]["containers"][0]["resources"]["requests"], n) for group, n in pods]
        assert sum(_number(requests.get(resource, "0")) * n for requests, n in requested) < quota


def _number(quantity: str) -> int:
    return int(quantity.removesuffix("Gi"))


def _runtime_env() -> dict[str, Any]:
    loaded = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_ray_accepts_the_runtime_env() -> None:
    loaded = _runtime_env()
    validated = RuntimeEnv(**loaded)
    assert validated["excludes"] == loaded["excludes"]
    assert validated["env_vars"] == loaded["env_vars"]


def test_runtime_env_holds_no_secret() -> None:
    names = [name.lower() for name in _runtime_env()["env_vars"]]
    assert not [name for name in names if any(word in name for word in SECRET)]


UPLOADED = (
    "jobs/train.py",
    "lungseg/__init__.py",
    "lungseg/bench/timing.py",
    "lungseg/dataset/__init__.py",
    "lungseg/dataset/catalog.py",
    "pyproject.toml",
)
EXCLUDED = (
    "data/prepared/index.parquet",
    "data/notes.txt",
    "runs/study/run.json",
    "demo/phantoms/report.html",
    "predictions/part-0.json",
    "bench/bench.json",
    ".git/HEAD",
    ".venv/bin/python",
    "wandb/run/log.txt",
    "lungseg/__pycache__/config.pyc",
    "elsewhere/lungs-000000.tar",
    "elsewhere/rows.parquet",
)


@pytest.mark.parametrize("rules", [".rayignore", "cluster/runtime_env.yaml"])
def test_upload_contains_code_without_data(rules: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in UPLOADED + EXCLUDED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("x")
    if rules == ".rayignore":
        (tree / rules).write_bytes((ROOT / rules).read_bytes())
    package = tmp_path / "package.zip"
    excludes = [] if rules == ".rayignore" else _runtime_env()["excludes"]
    packaging.create_package(str(tree), package, include_gitignore=False, excludes=excludes)
    with zipfile.ZipFile(package) as archive:
        assert set(archive.namelist()) - {".rayignore"} == set(UPLOADED)


def test_project_is_small_enough_to_upload(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    packaging.create_package(str(ROOT), package, include_gitignore=False)
    assert package.stat().st_size < 20 * 1024**2
    with zipfile.ZipFile(package) as archive:
        assert {"jobs/train.py", "lungseg/dataset/catalog.py"} <= set(archive.namelist())
