"""Files for `ray up` pass Ray's validation, contain no token, and stay within their node limits."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
FILES = ("ray-aws.yaml", "ray-gcp.yaml")
# Ray runs the commands in a login shell, where the environment is not active.
ACTIVE = ". ~/env/bin/activate && "


def _load(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "cluster" / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def _prepared(name: str) -> dict[str, Any]:
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(_load(name)))
    return prepared


@pytest.fixture(params=FILES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_ray_accepts_the_file(name: str) -> None:
    validate_config(_load(name) | {"cluster_synced_files": []})
    validate_config(_prepared(name))


def test_head_is_on_demand_and_runs_no_tasks(name: str) -> None:
    loaded = _load(name)
    head = loaded["available_node_types"][loaded["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "spot" not in str(head["node_config"]).lower()
    assert "--num-cpus 0 " in loaded["head_start_ray_commands"][-1]


def test_pools_are_spot_and_bounded(name: str) -> None:
    loaded = _load(name)
    pools = {key: value for key, value in loaded["available_node_types"].items() if key != loaded["head_node_type"]}
    assert set(pools) == {"cpu", "gpu"}
    assert all("spot" in str(pool["node_config"]).lower() for pool in pools.values())
    assert sum(pool["max_workers"] for pool in pools.values()) <= loaded["max_workers"] <= 20
    assert pools["cpu"]["min_workers"] == 1
    assert pools["gpu"]["min_workers"] == 0
    assert 0 < loaded["idle_timeout_minutes"] <= 30
    assert loaded["provider"]["cache_stopped_nodes"] is False


def test_file_requires_a_token_and_holds_none(name: str) -> None:
    loaded, text = _load(name), (ROOT / "cluster" / name).read_text()
    assert not re.search(r"RAY_AUTH_TOKEN|[0-9a-f]{32,}", text)
    assert loaded["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert loaded["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"
    starts = [loaded[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")]
    assert all("RAY_AUTH_MODE=token ray start " in start for start in starts)
    assert "--dashboard-host 127.0.0.1" in starts[0]


def test_only_code_is_copied_to_nodes(name: str) -> None:
    mounts = _load(name)["file_mounts"]
    local = {path for remote, path in mounts.items() if remote.startswith("~/lungseg/")}
    assert local == {"cluster", "jobs", "lungseg", "pyproject.toml", "requirements.lock", "README.md", "LICENSE"}
    assert all((ROOT / path).exists() for path in local)


def test_ray_adds_no_setup_command(name: str) -> None:
    prepared = _prepared(name)
    ours = _load(name)["setup_commands"]
    assert prepared["initialization_commands"] == []
    assert prepared["worker_setup_commands"] == ours
    assert prepared["head_setup_commands"][: len(ours)] == ours
    added = prepared["head_setup_commands"][len(ours) :]
    assert all(command.startswith(ACTIVE) and "--no-deps" in command for command in added)
    assert any(f"{ACTIVE}~/lungseg/cluster/install.sh " in command for command in ours)
    # By default, Ray would install its nightly build over the locked version.
    assert "wheels" not in str(prepared["worker_setup_commands"])


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Mock AWS with moto; yield the id of a machine image."""
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes a key pair there
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", _load("ray-aws.yaml")["provider"]["region"])
    monkeypatch.setattr("time.sleep", lambda _: None)  # Ray waits for changes to reach all of AWS
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # loading them takes ten seconds
    with mock_aws():
        boto3.client("iam").create_instance_profile(InstanceProfileName="lungseg")
        yield boto3.client("ec2").register_image(Name="ubuntu", RootDeviceName="/dev/sda1")["ImageId"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_aws_accepts_the_nodes(cloud: str) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = _prepared("ray-aws.yaml")
    for kind in config["available_node_types"].values():
        kind["node_config"] |= {
            "ImageId": cloud,
            "IamInstanceProfile": {"Name": "lungseg"},
        }  # otherwise Ray creates one
    config = AWSNodeProvider.fillout_available_node_types_resources(config)
    resources = {key: value["resources"] for key, value in config["available_node_types"].items()}
    assert resources["head"]["CPU"] == 0
    assert resources["cpu"]["CPU"] >= 8
    assert resources["gpu"]["GPU"] == 1
    config = AWSNodeProvider.bootstrap_config(config)
    provider = AWSNodeProvider(config["provider"], "lungseg")
    for kind, value in config["available_node_types"].items():
        provider.create_node(value["node_config"], {"ray-user-node-type": kind}, 1)
    reservations = boto3.client("ec2").describe_instances()["Reservations"]
    nodes = {node["InstanceType"]: node for group in reservations for node in group["Instances"]}
    assert [node.get("InstanceLifecycle") for node in nodes.values()] == [None, "spot", "spot"]
    assert {node["MetadataOptions"]["HttpTokens"] for node in nodes.values()} == {"required"}
