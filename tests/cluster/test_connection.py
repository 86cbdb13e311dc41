"""Connecting to Ray, and the error messages if that fails."""

import os
import socket
from pathlib import Path

import pytest
import ray

from lungseg.cluster import connection
from lungseg.errors import ResourceError, SettingsError


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Let Ray refuse every connection; return the list of requested addresses."""
    addresses: list[object] = []

    def refuse(**options: object) -> None:
        addresses.append(options["address"])
        raise ConnectionError

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    return addresses


def test_killed_cluster_is_not_joined(requested: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address file of Ray outlives a killed cluster, and Ray would try to connect for minutes."""

    def address() -> object:
        with pytest.raises(ResourceError, match="no Ray answers"):
            connection.connect()
        return requested.pop()

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert address() == "local"
    address_file = tmp_path / "ray" / "ray_current_cluster"
    address_file.parent.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address_file.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert address() is None
    assert address() == "local"
    address_file.write_text("invalid")
    assert address() == "local"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert address() == "auto"


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "nonsense", "127.0.0.1"])
def test_invalid_address_is_a_settings_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(SettingsError, match=f"RAY_ADDRESS={address}: .*HOST:PORT") as refused:
        connection.connect()
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("refused"),
            r"no Ray answers at local, or it refuses the token \(RAY_AUTH_MODE, RAY_AUTH_TOKEN\): .* RAY_ADDRESS=local",
        ),
        (
            Exception("The current node timed out. This could happen"),
            r"Ray did not start \(The current node timed out\)",
        ),
        (
            OSError(28, "No space left on device"),
            r"Ray did not start \(\[Errno 28\] No space left on device\): .* short of memory or disk",
        ),
    ],
    ids=["no answer", "timeout", "full disk"],
)
def test_failed_start_is_a_resource_error(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ResourceError, match=message):
        connection.connect()
    error = KeyError("a bug")
    with pytest.raises(KeyError, match="a bug"):
        connection.connect()


@pytest.mark.parametrize("is_set", [True, False])
def test_only_the_line_about_the_log_level_is_hidden(
    is_set: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not is_set:
        monkeypatch.delenv("RAY_BACKEND_LOG_LEVEL")

    def fail(**_: object) -> None:
        os.write(2, b"a real error\nSet ray log level from RAY_BACKEND_LOG_LEVEL to 3\nanother\n")
        raise KeyError

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(KeyError):
        connection.connect()
    os.write(2, b"later\n")
    lines = capfd.readouterr().err.splitlines()
    hidden = [] if is_set else ["Set ray log level from RAY_BACKEND_LOG_LEVEL to 3"]
    assert lines == ["a real error", *hidden, "another", "later"]


@pytest.mark.parametrize(("address", "own"), [("local", True), ("192.0.2.1:6379", False)])
def test_local_ray_runs_without_dashboard_and_watcher(address: str, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def fail(**options: object) -> None:
        given.update(options)
        raise ConnectionError

    monkeypatch.setenv("RAY_ADDRESS", address)
    own_settings = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "MALLOC_ARENA_MAX": "2"}
    for name in own_settings:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ResourceError):
        connection.connect()
    assert given["address"] == address
    assert (given.get("include_dashboard") is False) == own
    assert {name: os.environ.get(name) for name in own_settings} == (
        own_settings if own else dict.fromkeys(own_settings)
    )
